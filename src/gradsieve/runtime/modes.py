"""What is made for later steps, whatever mode the caller is in."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def ordinary_tensors() -> Iterator[None]:
    """Tensors made within may be changed in later steps, also where the caller infers.

    Those that `torch.inference_mode` makes may not be changed outside of it.
    """
    if not torch.is_inference_mode_enabled():
        yield
        return
    # Ending inference mode would turn recording for autograd on.
    with torch.inference_mode(False), torch.no_grad():
        yield
