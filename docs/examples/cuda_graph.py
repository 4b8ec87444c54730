"""A whole training step in one CUDA graph: python docs/examples/cuda_graph.py."""

import sys

import torch
from torch import nn

import fusedstep

if not torch.cuda.is_available():
    sys.exit("docs/examples/cuda_graph.py needs a CUDA device, torch sees none")

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(64, 256), nn.GELU(), nn.Linear(256, 64)).cuda()
lr = torch.tensor(1e-3, device="cuda")  # on the GPU, so that every replay reads it
opt = fusedstep.AdamW(model.parameters(), lr=lr, max_norm=1.0, capturable=True)
x = torch.randn(32, 64, device="cuda")  # the graph reads this memory: copy batches into it


def train():
    opt.zero_grad(set_to_none=False)  # gradients stay where the graph reads them
    loss = (model(x) - x).square().mean()
    loss.backward()
    opt.step()
    return loss


stream = torch.cuda.Stream()
stream.wait_stream(torch.cuda.current_stream())
with torch.cuda.stream(stream):  # creates state, and what libraries set up at their first call
    for _ in range(3):
        train()
torch.cuda.current_stream().wait_stream(stream)

graph = torch.cuda.CUDAGraph()
with torch.cuda.graph(graph):
    loss = train()
    norm = opt.grad_norm

for step in range(100):
    x.copy_(torch.randn(32, 64, device="cuda"))
    lr.fill_(1e-3 * (1 - step / 100))
    graph.replay()
print(f"loss {loss:.3f}, norm {norm:.3f}")
