"""The time of a step with each exchange, by the α–β model and the processor's work.

Buckets become ready one after the other, evenly spread over the backward pass. Each is exchanged
as soon as it is ready and the one before is done. After the backward pass the step waits for the
rest.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from gradsieve.exchange.cost import Links
from gradsieve.lab.plan.bare_step import BareStep, BucketSize
from gradsieve.lab.plan.machine import Machine
from gradsieve.topology import AnyTopology, DenseTopology, FrameTopology

FLOAT32 = 4
"""Bytes of an element."""
A_PEER = 0.25
"""What each further rank adds to a collective, as a share of a collective of two ranks. It has been
measured on eight ranks at most."""


@dataclass(frozen=True, slots=True)
class Service:
    """The seconds of one bucket's exchange."""

    processor: float
    line: float
    """The time on the link, or of processors that work meanwhile."""


def predict(
    topology: AnyTopology, bare: BareStep, machine: Machine, links: Links, bits: float
) -> float:
    """Return the seconds of a step.

    Args:
        bits: the size of a rank's frames in bits an element, where frames travel.
    """
    if isinstance(topology, DenseTopology):
        dense = [dense_service(topology, bucket, machine, links) for bucket in bare.buckets]
        return step_seconds(bare, dense, at_once=True)
    services = [frame_service(topology, bucket, machine, links, bits) for bucket in bare.buckets]
    return step_seconds(bare, services, at_once=False)


def dense_service(
    topology: DenseTopology, bucket: BucketSize, machine: Machine, links: Links
) -> Service:
    size, ranks = topology.element_size or FLOAT32, links.ranks
    work = machine.reduce * size * bucket.elements * 2 * (ranks - 1) / ranks
    work += machine.halve * bucket.elements if size < FLOAT32 else 0.0
    return Service(work, topology.seconds(links, FLOAT32 * bucket.elements, 0.0))


def frame_service(
    topology: FrameTopology, bucket: BucketSize, machine: Machine, links: Links, bits: float
) -> Service:
    frame = bits * bucket.elements / 8
    done = topology.work(links, bucket.parameters, bucket.elements)
    work = machine.select * bucket.elements * done.selected
    work += (machine.make * done.made + machine.read * done.read) * frame
    work += machine.section * done.sections * (done.made + done.read) / 3
    work += machine.collective * done.collectives * (1 + (links.ranks - 2) * A_PEER)
    return Service(work, topology.seconds(links, FLOAT32 * bucket.elements, frame))


def step_seconds(bare: BareStep, services: Sequence[Service], *, at_once: bool) -> float:
    """Return the seconds of a step whose buckets are exchanged behind the backward pass.

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
