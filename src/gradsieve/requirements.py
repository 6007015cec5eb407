"""What the sieve cannot work with, said in words."""

from collections.abc import Sequence

import torch
from torch.nn.parallel import DistributedDataParallel

from gradsieve.bucket import Bucket
from gradsieve.errors import SieveError
from gradsieve.sieve import DTYPES

OLDEST_TORCH = (2, 6)


def require_word(name: str, word: str, known: Sequence[str]) -> str:
    if word not in known:
        raise ValueError(f"{name} must be one of {', '.join(known)}, got {word!r}")
    return word


def require_counts(**counts: int) -> None:
    for name, count in counts.items():
        if count < 0:
            raise ValueError(f"{name} must be 0 or more, got {count}")


def require_bucket(bucket: Bucket) -> None:
    buffer = bucket.buffer()
    if buffer.layout is not torch.strided:
        raise SieveError(
            "a parameter of shape "
            f"{list(bucket.parameters()[0].shape)} has a sparse gradient, which the sieve "
            "cannot prune; make it dense (torch.nn.Embedding(..., sparse=False))"
        )
    if buffer.dtype not in DTYPES:
        raise SieveError(
            f"a bucket of gradients is {buffer.dtype}; the sieve takes float32, float16 and "
            "bfloat16 (model.float() converts the parameters)"
        )


def require_all_buckets(model: DistributedDataParallel) -> None:
    if getattr(model, "skip_all_reduce_unused_params", False):
        raise SieveError(
            "DDP(skip_all_reduce_unused_params=True) leaves buckets out, which the sieve must "
            "see in every step; use find_unused_parameters=True alone"
        )


def require_torch(version: str | None = None) -> None:
    found = torch.__version__ if version is None else version
    major, minor = (int(part) for part in found.split(".")[:2])
    if (major, minor) < OLDEST_TORCH:
        oldest = ".".join(map(str, OLDEST_TORCH))
        raise SieveError(
            f"gradsieve needs torch {oldest} or later, found {found}: pip install -U torch"
        )
