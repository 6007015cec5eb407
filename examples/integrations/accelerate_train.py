"""Accelerate on two CPU ranks:

torchrun --nproc-per-node 2 examples/integrations/accelerate_train.py
"""

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import gradsieve as gs
from gradsieve.integrations.accelerate import attach

accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
set_seed(0)
inputs = torch.randn(4096, 32)
labels = (inputs @ torch.randn(32, 10)).argmax(1)
train = DataLoader(TensorDataset(inputs[:3072], labels[:3072]), batch_size=16, shuffle=True)

net = nn.Sequential(nn.Linear(32, 256), nn.ReLU(), nn.Linear(256, 10))
optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
model, optimizer, train = accelerator.prepare(net, optimizer, train)
sieve = attach(accelerator, model, threshold=gs.Sigma(2))  # takes the options of gs.attach

for _ in range(3):
    for batch, wanted in train:
        with accelerator.accumulate(model):
            loss = F.cross_entropy(model(batch), wanted)
            accelerator.backward(loss)
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
    accelerator.save_state("checkpoint")  # accelerator.load_state("checkpoint") resumes exactly

accelerator.print(sieve.totals)
right = model(inputs[3072:]).argmax(1) == labels[3072:]
accelerator.print(f"test accuracy {right.float().mean():.3f}")
accelerator.end_training()
