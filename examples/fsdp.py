"""FSDP2 within nodes, gradsieve between them: torchrun --nproc-per-node 4 examples/fsdp.py"""

from itertools import islice

import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from torch.nn import functional as F

import gradsieve as gs
from gradsieve.lab.workloads.digits import accuracy, batches
from gradsieve.lab.workloads.mnist import load_mnist
from gradsieve.lab.workloads.mnist_cnn import MnistCnn

STEPS, RANKS_PER_NODE = 20, 2

dist.init_process_group("gloo")
rank, world_size = dist.get_rank(), dist.get_world_size()
mesh = dist.init_device_mesh(
    "cpu", (world_size // RANKS_PER_NODE, RANKS_PER_NODE), mesh_dim_names=("replicate", "shard")
)
torch.manual_seed(0)
model = fully_shard(MnistCnn(), mesh=mesh["shard"])
sieve = gs.Averager(
    model.named_parameters(), process_group=mesh["replicate"].get_group(), overlap=True
)
optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)

data = batches(load_mnist(train=True), rank, world_size, seed=0)
for images, labels in islice(data, STEPS):
    optimizer.zero_grad()
    F.cross_entropy(model(images), labels).backward()
    sieve.average_()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()

gs.checkpoint.save(sieve, "checkpoint")
test = accuracy(model, load_mnist(train=False).first(1000))
if rank == 0:
    print(sieve.totals)
    print(f"test accuracy {test:.3f}")
dist.destroy_process_group()
