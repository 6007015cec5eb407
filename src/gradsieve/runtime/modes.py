"""Make tensors that later steps may change, whichever mode of autograd the caller is in."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def ordinary_tensors() -> Iterator[None]:
    """Leave inference mode for as long as the context lasts.

    Tensors that are made in `torch.inference_mode` cannot be changed outside of it.
    """
    if not torch.is_inference_mode_enabled():
        yield
        return
    # Ending inference mode would turn recording for autograd on.
    with torch.inference_mode(False), torch.no_grad():
        yield
