"""FSDP2 with a fused optimizer: torchrun --nproc-per-node 2 docs/examples/fsdp.py [checkpoint].

Every rank sees its own half of the batch. The norm is that of the whole model, on every rank.
"""

import os
import sys

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import fusedstep

local, here = int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"])
device = "cuda" if torch.cuda.device_count() >= here else "cpu"
if device == "cuda":
    torch.cuda.set_device(local)
dist.init_process_group("nccl" if device == "cuda" else "gloo")
mesh = init_device_mesh(device, (dist.get_world_size(),))

torch.manual_seed(0)  # the same weights on every rank
model = nn.Sequential(nn.Linear(16, 64), nn.GELU(), nn.Linear(64, 1)).to(device)
for layer in model:
    if isinstance(layer, nn.Linear):
        fully_shard(layer, mesh=mesh)
fully_shard(model, mesh=mesh)
opt = fusedstep.AdamW(model.parameters(), lr=1e-2, max_norm=1.0)  # after fully_shard

torch.manual_seed(dist.get_rank())  # other examples on every rank
for _ in range(20):
    x = torch.randn(32, 16, device=device)
    loss = (model(x) - x.sum(dim=1, keepdim=True)).square().mean()
    loss.backward()
    opt.step()
    opt.zero_grad()

print(f"rank {dist.get_rank()}: norm {opt.grad_norm.item()!r}")
if len(sys.argv) > 1:  # each rank writes its shards; any number of ranks can load them
    weights, state = get_state_dict(model, opt)
    dcp.save({"model": weights, "optimizer": state}, checkpoint_id=sys.argv[1])
dist.destroy_process_group()
