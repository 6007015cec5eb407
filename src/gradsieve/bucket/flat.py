"""Buckets that gradsieve makes itself, where no DDP makes them."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

BUCKET_BYTES = 25 * 2**20
"""Size of a bucket, the default of DDP. While one bucket travels, the next is encoded."""


@dataclass(frozen=True, slots=True)
class FlatBucket:
    """A bucket whose gradients its owner writes into the buffer."""

    number: int
    last: bool
    tensors: list[Tensor]
    """The parameters, or what stands for them."""
    flat: Tensor
    """The gradients, one behind the other, on the device of the parameters."""

    def index(self) -> int:
        return self.number

    def is_last(self) -> bool:
        return self.last

    def parameters(self) -> list[Tensor]:
        return self.tensors

    def buffer(self) -> Tensor:
        return self.flat

    def gradients(self) -> list[Tensor]:
        return list(torch.split(self.flat, [tensor.numel() for tensor in self.tensors]))

    def shaped(self) -> list[Tensor]:
        """Return a view of the buffer for each parameter, with its shape and strides."""
        return [
            gradient.as_strided(tensor.shape, tensor.stride())
            for gradient, tensor in zip(self.gradients(), self.tensors, strict=True)
        ]


def buckets_of(tensors: Sequence[Tensor]) -> list[FlatBucket]:
    """Return buckets for parameters, in their order. A bucket has one dtype and one device.

    The buffers are uninitialized.
    """
    groups: list[list[Tensor]] = []
    size = 0
    for tensor in tensors:
        fits = bool(groups) and size + tensor.nbytes <= BUCKET_BYTES
        if not fits or kind_of(groups[-1][0]) != kind_of(tensor):
            groups.append([])
            size = 0
        groups[-1].append(tensor)
        size += tensor.nbytes
    return [
        FlatBucket(
            number=number,
            last=number == len(groups) - 1,
            tensors=group,
            flat=torch.empty(
                sum(tensor.numel() for tensor in group),
                device=group[0].device,
                dtype=group[0].dtype,
            ),
        )
        for number, group in enumerate(groups)
    ]


def kind_of(tensor: Tensor) -> tuple[torch.device, torch.dtype]:
    """Return what all tensors of a bucket have in common."""
    return tensor.device, tensor.dtype
