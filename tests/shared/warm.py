"""What would cost every rank seconds at first: imports, and loading the compiled kernels."""

import torch
import torch._dynamo  # DDP imports it when the first model is made.
import torch.distributed._composable
import torch.distributed.checkpoint
import torch.distributed.fsdp
import torch.distributed.tensor

import gradsieve as gs
from gradsieve.bucket.warm_up import warm_up
from gradsieve.codec import VALUES

indices, values, _ = gs.select(torch.ones(8), torch.zeros(8), 0.5)
for mode in VALUES:
    for error_feedback in (True, False):
        warm_up(mode, error_feedback, True)
    gs.decode(gs.encode(indices, values, 8, threshold=0.5, mode=mode))
