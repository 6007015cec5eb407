"""What a training step is without an exchange."""

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
    """Seconds of one rank's lock-step, and the buckets in the order of the backward pass."""

    step: float
    backward: float
    """Of that: the backward pass, behind which buckets are exchanged."""
    wrapper: float
    """What DDP adds without any exchange: it copies gradients into buckets."""
    buckets: tuple[BucketSize, ...]


def buckets_of(numels: Iterable[int], cap_mb: float = 25.0) -> tuple[BucketSize, ...]:
    """As DDP fills them, with float32 gradients of as many elements.

    Args:
        numels: of the parameters, in the model's order.
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
"""Of a step: usual where a forward pass, twice as much backward, and an update make one."""
USUAL_PARAMETER = 1_000_000
"""Elements."""


def like_usual(elements: float, step: float) -> BareStep:
    """Of a model of which no more is known than its size and its step's seconds."""
    count = max(1, round(elements / USUAL_PARAMETER))
    buckets = buckets_of([round(elements / count)] * count)
    return BareStep(step=step, backward=BACKWARD_SHARE * step, wrapper=0.0, buckets=buckets)
