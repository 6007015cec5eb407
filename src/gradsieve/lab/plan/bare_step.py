"""A training step without an exchange."""

from collections.abc import Iterable
from dataclasses import dataclass

FIRST_BUCKET_BYTES = 2**20
"""DDP closes its first bucket early, so that its exchange begins early."""


@dataclass(frozen=True, slots=True)
class BucketSize:
    elements: int
    parameters: int


@dataclass(frozen=True, slots=True, kw_only=True)
class BareStep:
    """The seconds of one rank's step, and the buckets in the order of the backward pass."""

    step: float
    backward: float
    """The part of `step` in the backward pass, beside which buckets are exchanged."""
    wrapper: float
    """What DDP adds without any exchange, since it copies gradients into buckets."""
    buckets: tuple[BucketSize, ...]


def buckets_of(numels: Iterable[int], cap_mb: float = 25.0) -> tuple[BucketSize, ...]:
    """Return the buckets that DDP fills with float32 gradients.

    Args:
        numels: the elements of each parameter, in the model's order.
    """
    buckets, elements, parameters = [], 0, 0
    limit = float(FIRST_BUCKET_BYTES)
    for numel in reversed(list(numels)):
        elements, parameters = elements + numel, parameters + 1
        if 4 * elements >= limit:
            buckets.append(BucketSize(elements, parameters))
            elements, parameters, limit = 0, 0, cap_mb * 2**20
    if parameters:
        buckets.append(BucketSize(elements, parameters))
    return tuple(buckets)


BACKWARD_SHARE = 0.6
"""The backward pass's usual share of a step: twice the forward pass, beside an update."""
USUAL_PARAMETER = 1_000_000
"""The elements of a parameter whose size is not known."""


def like_usual(elements: float, step: float) -> BareStep:
    """Return the usual step of a model, where only its size and the step's seconds are known."""
    count = max(1, round(elements / USUAL_PARAMETER))
    buckets = buckets_of([round(elements / count)] * count)
    return BareStep(step=step, backward=BACKWARD_SHARE * step, wrapper=0.0, buckets=buckets)
