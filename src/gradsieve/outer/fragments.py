"""Fragments: the parts of a model that take turns, and the buckets in which each is exchanged."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

BUCKET_ELEMENTS = 25 * 2**20 // 4
"""Number of elements of a bucket (25 MiB, the default of DDP). While one bucket travels, the next
is encoded."""


@dataclass(frozen=True, slots=True)
class PseudoGradients:
    """A bucket of pseudo-gradients: how far the weights have moved since the last exchange."""

    number: int
    last: bool
    outer: list[Tensor]
    """The outer weights, from which the movement is measured."""
    flat: Tensor
    """The pseudo-gradients, one behind the other (float32, on the device of the outer weights)."""

    def index(self) -> int:
        return self.number

    def is_last(self) -> bool:
        return self.last

    def parameters(self) -> list[Tensor]:
        return self.outer

    def buffer(self) -> Tensor:
        return self.flat

    def gradients(self) -> list[Tensor]:
        return list(torch.split(self.flat, [parameter.numel() for parameter in self.outer]))

    def shaped(self) -> list[Tensor]:
        """Return a view of the buffer for each parameter, with its shape and strides."""
        return [
            gradient.as_strided(parameter.shape, parameter.stride())
            for gradient, parameter in zip(self.gradients(), self.outer, strict=True)
        ]


def split_alike(numels: Sequence[int], fragments: int) -> list[list[int]]:
    """Divide parameters into fragments of about the same size.

    The largest parameters are assigned first, each to the smallest fragment so far. Neighbours in
    the model usually fall into different fragments.

    Args:
        numels: the number of elements of each parameter.

    Returns:
        For each fragment, the indices of its parameters, ascending.

    Raises:
        ValueError: there are more fragments than parameters.
    """
    if fragments > len(numels):
        raise ValueError(f"{fragments} fragments of a model of {len(numels)} parameters")
    parts: list[list[int]] = [[] for _ in range(fragments)]
    sizes = [0] * fragments
    for place in sorted(range(len(numels)), key=lambda place: -numels[place]):
        least = sizes.index(min(sizes))
        parts[least].append(place)
        # An empty parameter counts as 1, so that no fragment stays without parameters.
        sizes[least] += max(1, numels[place])
    return [sorted(part) for part in parts]


def buckets_of(parameters: Sequence[Tensor]) -> list[PseudoGradients]:
    """Return buckets for the parameters. Their buffers are uninitialized."""
    groups: list[list[Tensor]] = []
    numel = 0
    for parameter in parameters:
        fits = bool(groups) and numel + parameter.numel() <= BUCKET_ELEMENTS
        if not fits or groups[-1][0].device != parameter.device:
            groups.append([])
            numel = 0
        groups[-1].append(parameter)
        numel += parameter.numel()
    return [
        PseudoGradients(
            number=number,
            last=number == len(groups) - 1,
            outer=group,
            flat=torch.empty(
                sum(p.numel() for p in group), device=group[0].device, dtype=torch.float32
            ),
        )
        for number, group in enumerate(groups)
    ]
