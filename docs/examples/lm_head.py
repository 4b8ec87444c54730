"""Solves the last layer of a language model in closed form: python docs/examples/lm_head.py.

The hidden state of a token is a random vector for each of the two tokens before it; the text is
Python's own documentation, in bytes. Nothing is trained.
"""

from pydoc_data.topics import topics

import torch
from torch.nn.functional import cross_entropy

from fusedstep import lm_head

text = torch.tensor(list("".join(topics.values()).encode()))
torch.manual_seed(0)
vectors = torch.randn(2, 256, 128)  # for the byte before, and for the one before that
hidden = torch.cat([vectors[0][text[1:-1]], vectors[1][text[:-2]]], dim=1) / 16  # [N, 256]
tokens = text[2:]
train, held_out = slice(0, 40_000), slice(40_000, 45_000)

solver = lm_head.LeastSquares(d_model=256, vocab_size=256)
for part in torch.arange(len(tokens))[train].split(10_000):  # no N x V array ever exists
    solver.update(hidden[part], tokens[part])
weight = solver.solve(ridge=1e-3).float()  # [256, 256]

scale, _ = lm_head.fit_temperature(hidden[train], tokens[train], weight)


def loss(weight):
    return cross_entropy(hidden[held_out] @ weight.T, tokens[held_out]).item()


result = lm_head.newton_cg(scale * weight, hidden[train], tokens[train], steps=2)
print(f"cross-entropy of held-out bytes, uniform: {loss(torch.zeros(256, 256)):.2f}")
print(f"least squares, scaled: {loss(scale * weight):.2f}")
print(f"then two steps of Newton-CG: {loss(result.weight):.2f}")
