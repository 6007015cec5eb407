"""The front end for any training loop: average gradients where no DDP calls a hook."""

from gradsieve.averager.averager import Averager

__all__ = ["Averager"]
