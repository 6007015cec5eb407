"""What a step takes with each exchange, by the α–β model and what the processor has to do.

Buckets become ready one after the other, evenly spread over the backward pass; each is exchanged
when it is ready and the one before is through. What is not through at the end of the backward pass
is waited for.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from gradsieve.exchange.cost import LinkCost
from gradsieve.lab.plan.bare_step import BareStep, BucketSize
from gradsieve.lab.plan.machine import Machine
from gradsieve.pieces import SMALLEST_PIECE, Way

A_PEER = 0.25
"""Of a collective of two ranks: what each further rank adds, to which a size and a frame are sent
and from which they come. Not measured on more than eight ranks."""


@dataclass(frozen=True, slots=True)
class Service:
    """Seconds of one bucket."""

    processor: float
    line: float
    """On the link, or of processors that work while it is."""


def predict_dense(
    bare: BareStep, machine: Machine, link: LinkCost, ranks: int, *, half: bool = False
) -> float:
    """Seconds of a step with an all-reduce of everything, in float32 or float16."""
    size = 2 if half else 4
    services = []
    for bucket in bare.buckets:
        work = machine.reduce * size * bucket.elements * 2 * (ranks - 1) / ranks
        work += machine.halve * bucket.elements if half else 0.0
        services.append(Service(work, link.all_reduce(ranks, size * bucket.elements)))
    return step_seconds(bare, services, at_once=True)


def predict_frames(
    bare: BareStep, machine: Machine, link: LinkCost, ranks: int, way: Way, bits: float
) -> float:
    """Seconds of a step whose ranks send `bits` an element of their gradients' frames."""
    services = [frame_service(bucket, machine, link, ranks, way, bits) for bucket in bare.buckets]
    return step_seconds(bare, services, at_once=False)


def frame_service(
    bucket: BucketSize, machine: Machine, link: LinkCost, ranks: int, way: Way, bits: float
) -> Service:
    frame = bits * bucket.elements / 8
    if way == "two-shot":
        # A part of every frame and of every sum is made and read.
        made, read, line = 1 + 1 / ranks, 2.0, link.two_shot(ranks, frame)
        selected, collectives = 1 + 1 / ranks, 2
    else:
        made, read, line = 1.0, float(ranks), link.gather(ranks, frame)
        selected, collectives = 1.0, 1
    work = machine.select * bucket.elements * selected
    work += (machine.make * made + machine.read * read) * frame
    work += machine.section * sections_of(bucket, ranks, way) * (made + read) / 3
    work += machine.collective * collectives * (1 + (ranks - 2) * A_PEER)
    return Service(work, line)


def sections_of(bucket: BucketSize, ranks: int, way: Way) -> float:
    """Of the frames that a rank makes of a bucket for all others."""
    if way == "gather":
        return bucket.parameters
    return min(ranks * bucket.parameters, bucket.parameters + bucket.elements / SMALLEST_PIECE)


def step_seconds(bare: BareStep, services: Sequence[Service], *, at_once: bool) -> float:
    """
    Args:
        at_once: the processor's part of an exchange runs while the line is busy.
    """
    stolen = sum(service.processor for service in services[:-1])
    backward = bare.backward + stolen
    free = 0.0
    for number, service in enumerate(services, start=1):
        seconds = service.processor + service.line
        if at_once:
            seconds = max(service.processor, service.line)
        free = max(free, backward * number / len(services)) + seconds
    return bare.step + bare.wrapper + stolen + free - backward
