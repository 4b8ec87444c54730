"""Hugging Face accelerate with a fused optimizer: python docs/examples/accelerate_loop.py.

The optimizer clips, so accelerator.clip_grad_norm_ is not called.
"""

import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import fusedstep

accelerator = Accelerator(gradient_accumulation_steps=2)
torch.manual_seed(0)
x = torch.randn(512, 16)
loader = DataLoader(TensorDataset(x, x.sum(dim=1, keepdim=True)), batch_size=16)
model = nn.Sequential(nn.Linear(16, 64), nn.GELU(), nn.Linear(64, 1))
opt = fusedstep.AdamW(model.parameters(), lr=1e-2, max_norm=1.0)
model, opt, loader = accelerator.prepare(model, opt, loader)

for epoch in range(3):
    for inputs, targets in loader:
        with accelerator.accumulate(model):
            loss = (model(inputs) - targets).square().mean()
            accelerator.backward(loss)
            opt.step()  # every second time; unscales, clips and updates
            opt.zero_grad()
    accelerator.print(f"epoch {epoch + 1}: loss {loss:.3f}, norm {opt.optimizer.grad_norm:.3f}")
