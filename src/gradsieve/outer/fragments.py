"""The parts of a model that take turns, and the buckets in which each is exchanged."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

BUCKET_ELEMENTS = 25 * 2**20 // 4
"""As DDP's default: while one is under way the next is coded."""


@dataclass(frozen=True, slots=True)
class PseudoGradients:
    """What some parameters have moved, flat, one behind the other: a `Bucket` of the sieve."""

    number: int
    last: bool
    outer: list[Tensor]
    """The parameters, as they were."""
    flat: Tensor
    """float32, on their device."""

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
        """Views of the buffer, as the parameters lie in memory."""
        return [
            gradient.as_strided(parameter.shape, parameter.stride())
            for gradient, parameter in zip(self.gradients(), self.outer, strict=True)
        ]


def split_alike(numels: Sequence[int], fragments: int) -> list[list[int]]:
    """The places of the parameters in each fragment, ascending; fragments are alike in size.

    The largest parameter first, each to the fragment that has least so far: neighbours in the model
    come into different fragments.

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
        # An empty parameter too is one: no fragment stays without.
        sizes[least] += max(1, numels[place])
    return [sorted(part) for part in parts]


def buckets_of(parameters: Sequence[Tensor]) -> list[PseudoGradients]:
    """Their buffers hold nothing yet."""
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
