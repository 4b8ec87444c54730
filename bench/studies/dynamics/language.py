"""A small language task: text from a random bigram chain with Zipf's frequencies, a transformer."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, scaled_dot_product_attention


class Text:
    """A chain of tokens, frequent and rare as words are; its entropy is the least loss."""

    def __init__(self, vocabulary: int = 1024, length: int = 32) -> None:
        self.vocabulary, self.length = vocabulary, length
        generator = torch.Generator().manual_seed(0)
        frequency = 1 / torch.arange(1, vocabulary + 1, dtype=torch.float64)
        # After each token, all others by frequency, times the exponential of a normal number.
        noise = torch.randn(vocabulary, vocabulary, generator=generator, dtype=torch.float64)
        chances = frequency * (1.5 * noise).exp()
        self.chances = chances / chances.sum(1, keepdim=True)
        stationary = torch.full((vocabulary,), 1 / vocabulary, dtype=torch.float64)
        for _ in range(200):
            stationary = stationary @ self.chances
        self.stationary = stationary
        surprise = -(self.chances * self.chances.log()).sum(1)
        self.entropy = float(stationary @ surprise)
        self._steps = self.chances.cumsum(1)
        self._first = stationary.cumsum(0)

    def sample(self, batch: int, generator: torch.Generator) -> Tensor:
        """Tokens [batch, length + 1]."""
        draws = torch.rand(self.length + 1, batch, generator=generator, dtype=torch.float64)
        last = self.vocabulary - 1
        tokens = [torch.searchsorted(self._first, draws[0]).clamp(max=last)]
        for draw in draws[1:]:
            rows = self._steps[tokens[-1]]
            tokens.append(torch.searchsorted(rows, draw[:, None])[:, 0].clamp(max=last))
        return torch.stack(tokens, 1)


class Block(nn.Module):
    """Attention and an MLP, each after a normalization."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key = (nn.Linear(width, width, bias=False) for _ in range(2))
        self.value, self.out = (nn.Linear(width, width, bias=False) for _ in range(2))
        self.up = nn.Linear(width, 4 * width, bias=False)
        self.down = nn.Linear(4 * width, width, bias=False)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        y = self.norms[0](x)
        query, key, value = (
            layer(y).view(batch, length, self.heads, -1).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        mixed = scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, length, width))
        return x + self.down(nn.functional.gelu(self.up(self.norms[1](x))))


class Transformer(nn.Module):
    """Two blocks between an embedding and a last layer."""

    HEADS = 4

    def __init__(self, vocabulary: int, width: int = 48, depth: int = 2) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.blocks = nn.ModuleList(Block(width, self.HEADS) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary, bias=False)
        for param in self.parameters():
            if param.dim() == 2:
                nn.init.normal_(param, std=0.02)  # as GPT-2

    def loss(self, tokens: Tensor) -> Tensor:
        """Cross-entropy of each token after the ones before it."""
        x = self.embedding(tokens[:, :-1])
        for block in self.blocks:
            x = block(x)
        logits = self.head(self.norm(x))
        return cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())

    def matrices(self) -> list[nn.Parameter]:
        """The hidden layers' weights."""
        return [param for param in self.blocks.parameters() if param.dim() == 2]
