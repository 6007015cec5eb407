"""What would cost every rank seconds at first: imports, and loading the compiled kernels."""

import numpy as np
import torch
import torch._dynamo  # DDP imports it when the first model is made.

import gradsieve as gs
from gradsieve.codec import decode_frame
from gradsieve.codec.add import add_at
from gradsieve.sieve import sample_magnitudes

ones, zeros = torch.ones(8), torch.zeros(8)
gs.measure(ones)
gs.measure(ones, zeros)
sample_magnitudes(ones, zeros, None, 0)
indices, values, _ = gs.select(ones, zeros, 0.5)
frame = decode_frame(gs.encode(indices, values, 8))
add_at(ones.numpy(), frame.sections[0].indices, frame.sections[0].values, np.float32(1))
