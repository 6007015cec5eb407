"""Run an exchange between processes, over the process groups of this rank."""

from gradsieve.bucket.average import Contribution
from gradsieve.exchange.groups import Groups
from gradsieve.telemetry.clock import StepClock
from gradsieve.topology.topology import Answer, Exchanging, Request, ToAll, ToEach


def run_exchange(exchange: Exchanging, groups: Groups, clock: StepClock) -> list[Contribution]:
    """Answer the requests of an exchange by sending its frames over the groups of this rank.

    Raises:
        ExchangeError: on the ranks that notice that a rank has died or stalled.
        FrameError: a frame that has arrived is damaged.
    """
    try:
        request = next(exchange)
        while True:
            with clock.timed("exchange"):
                arrived = send(request, groups)
            request = exchange.send(arrived)
    except StopIteration as done:
        contributions: list[Contribution] = done.value
        return contributions


def send(request: Request, groups: Groups) -> Answer:
    if isinstance(request, ToAll):
        return [groups.everyone.to_all(request.frame)]
    if isinstance(request, ToEach):
        return [groups.everyone.to_each(request.frames)]
    return groups.nodes.to_all(request.frame)
