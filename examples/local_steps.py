"""Local steps: torchrun --nproc-per-node 2 examples/local_steps.py"""

from itertools import islice

import torch
import torch.distributed as dist
from torch.nn import functional as F

import gradsieve as gs
from gradsieve.lab.workloads.digits import accuracy, batches
from gradsieve.lab.workloads.mnist import load_mnist
from gradsieve.lab.workloads.mnist_cnn import MnistCnn

STEPS = 70

dist.init_process_group("gloo")
rank, world_size = dist.get_rank(), dist.get_world_size()
torch.manual_seed(0)
net = MnistCnn()
optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
data = batches(load_mnist(train=True), rank, world_size, seed=0)

outer = gs.OuterSync(net, every=10)
for images, labels in islice(data, STEPS):
    optimizer.zero_grad()
    F.cross_entropy(net(images), labels).backward()
    optimizer.step()
    outer.step()
outer.finish()

if rank == 0:
    print(outer.state.totals)
    test = load_mnist(train=False).first(1000)
    print(f"test accuracy {accuracy(net, test):.3f}")
dist.destroy_process_group()
