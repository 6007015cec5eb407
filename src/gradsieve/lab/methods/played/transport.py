"""Runs the exchanges of many ranks in one process."""

from collections.abc import Sequence

from gradsieve.bucket.average import Contribution
from gradsieve.topology.topology import Answer, Exchanging, Request, ToAll, ToEach


def play_exchanges(exchanges: Sequence[Exchanging]) -> list[Contribution]:
    """Hand the frames of all ranks to each other.

    Returns:
        What the first rank adds up. All ranks add up the same, so that the others need not.
    """
    try:
        requests = [next(exchange) for exchange in exchanges]
        while True:
            answers = answers_to(requests)
            requests = [
                exchange.send(answer) for exchange, answer in zip(exchanges, answers, strict=True)
            ]
    except StopIteration as done:
        # The first rank asks for no more.
        contributions: list[Contribution] = done.value
        return contributions


def answers_to(requests: Sequence[Request]) -> list[Answer]:
    """The frames that arrive at each rank; all ranks have asked for the same."""
    to_all = [request.frame for request in requests if isinstance(request, ToAll)]
    if to_all:
        return [[to_all]] * len(requests)
    to_each = [request.frames for request in requests if isinstance(request, ToEach)]
    if not to_each:
        raise ValueError("ranks that are played in one process are not divided into nodes")
    return [[list(arriving)] for arriving in zip(*to_each, strict=True)]
