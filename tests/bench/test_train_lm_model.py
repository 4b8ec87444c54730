"""The decoder of bench/train_lm.py: its size, its start, and that it only looks back."""

import math

import pytest
import torch

from bench.lm.gpt import GPT, Shape
from bench.lm.recipe import SIZES


def test_gpt2_has_the_148_tensors_and_124_million_parameters():
    with torch.device("meta"):
        model = GPT(SIZES["gpt2"].shape)
    parameters = list(model.parameters())
    assert len(parameters) == 148
    assert sum(p.numel() for p in parameters) == 124_439_808 + (50304 - 50257) * 768
    assert sum(p.dim() >= 2 for p in parameters) == 50


def test_a_new_model_knows_nothing_and_looks_only_back():
    torch.manual_seed(0)
    model = GPT(Shape(vocabulary=50, context=8, layers=2, heads=2, width=16))
    tokens = torch.randint(50, (4, 8))
    assert model(tokens, tokens.roll(-1, 1)).item() == pytest.approx(math.log(50), abs=0.05)
    changed = tokens.clone()
    changed[:, 5] = (changed[:, 5] + 1) % 50
    before, after = model.logits(tokens), model.logits(changed)
    assert torch.equal(before[:, :5], after[:, :5])
    assert not torch.equal(before[:, 5:], after[:, 5:])


def test_what_writes_into_the_residual_stream_starts_smaller():
    torch.manual_seed(0)
    model = GPT(Shape(vocabulary=100, context=8, layers=8, heads=2, width=64))
    deviation = {name: p.std().item() for name, p in model.named_parameters() if p.dim() == 2}
    for name, found in deviation.items():
        writes = name.endswith(("projection.weight", "mlp.2.weight"))
        assert found == pytest.approx(0.02 / 4 if writes else 0.02, rel=0.1), name
