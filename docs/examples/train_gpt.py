"""Trains a small GPT on texts that come with Python: python docs/examples/train_gpt.py [steps]."""

import functools
import sys
from pydoc_data.topics import topics

import torch
from torch import nn
from torch.nn.functional import cross_entropy

import fusedstep
from fusedstep.schedules import Scheduler, warmup_cosine

text = torch.tensor(list("".join(topics.values()).encode()))  # bytes are the tokens
steps, context, width = int(sys.argv[1]) if len(sys.argv) > 1 else 100, 64, 128


class GPT(nn.Module):
    def __init__(self):
        super().__init__()
        self.tokens, self.positions = nn.Embedding(256, width), nn.Embedding(context, width)
        sizes = {"d_model": width, "nhead": 4, "dim_feedforward": 4 * width}
        block = nn.TransformerEncoderLayer(**sizes, dropout=0, batch_first=True, norm_first=True)
        self.blocks = nn.TransformerEncoder(block, 2, nn.LayerNorm(width), False)
        for embedding in (self.tokens, self.positions):
            nn.init.normal_(embedding.weight, std=0.02)  # tokens.weight is the output layer's, too

    def forward(self, tokens):
        mask = nn.Transformer.generate_square_subsequent_mask(context)
        x = self.tokens(tokens) + self.positions.weight
        return self.blocks(x, mask, is_causal=True) @ self.tokens.weight.T


model = GPT()
groups = fusedstep.param_groups(model, weight_decay=0.1)
opt = fusedstep.AdamW(groups, betas=(0.9, 0.95), max_norm=1.0)
peak = {"max_lr": 1e-3, "min_lr": 1e-4, "warmup_steps": 10, "max_steps": steps}
scheduler = Scheduler(opt, functools.partial(warmup_cosine, **peak))

for step in range(steps):
    starts = torch.randint(len(text) - context, (16,))
    windows = torch.stack([text[i : i + context + 1] for i in starts])
    loss = cross_entropy(model(windows[:, :-1]).flatten(0, 1), windows[:, 1:].flatten())
    loss.backward()
    opt.step()
    scheduler.step()
    opt.zero_grad()
    if step % 10 == 9:
        print(f"step {step + 1}: loss {loss:.2f}, norm {opt.grad_norm:.2f}")
