"""What would cost every rank seconds at first: imports, and loading the compiled kernels."""

import torch
import torch._dynamo  # DDP imports it when the first model is made.

import gradsieve as gs
from gradsieve.codec import VALUES, decode_frame
from gradsieve.sieve import sample_magnitudes

ones, zeros = torch.ones(8), torch.zeros(8)
gs.measure(ones)
gs.measure(ones, zeros)
sample_magnitudes(ones, zeros, None, 0)
for mode in VALUES:
    for residual in (None, zeros):
        indices, values, _ = gs.select(ones, zeros, 0.5)
        frame = gs.encode(indices, values, 8, threshold=0.5, mode=mode, residual=residual)
        decode_frame(frame).sections[0].add_to(ones.numpy(), 1.0)
        gs.decode(frame)
