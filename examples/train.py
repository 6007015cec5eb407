"""Plain data-parallel training: torchrun --nproc-per-node 2 examples/train.py"""

from itertools import islice

import torch
import torch.distributed as dist
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel as DDP

from gradsieve.lab.workloads.digits import accuracy, batches
from gradsieve.lab.workloads.mnist import load_mnist
from gradsieve.lab.workloads.mnist_cnn import MnistCnn

STEPS = 50

dist.init_process_group("gloo")
rank, world_size = dist.get_rank(), dist.get_world_size()
torch.manual_seed(0)
model = DDP(MnistCnn())
optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)

data = batches(load_mnist(train=True), rank, world_size, seed=0)
for images, labels in islice(data, STEPS):
    optimizer.zero_grad()
    F.cross_entropy(model(images), labels).backward()
    optimizer.step()

if rank == 0:
    torch.save({"model": model.module.state_dict()}, "checkpoint.pt")
    test = load_mnist(train=False).first(1000)
    print(f"test accuracy {accuracy(model.module, test):.3f}")
dist.destroy_process_group()
