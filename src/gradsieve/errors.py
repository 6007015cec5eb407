"""What goes wrong outside a single function."""

from collections.abc import Sequence


class SieveError(RuntimeError):
    """gradsieve was set up in a way that cannot work; the message says what to do."""


class MismatchError(SieveError):
    """The ranks are not set up alike; the message names the ranks and what differs."""


def has(ranks: Sequence[int]) -> str:
    return "has" if len(ranks) == 1 else "have"


def named_ranks(ranks: Sequence[int]) -> str:
    """Such as ``rank 1`` or ``ranks 1, 2``."""
    return f"rank{'s' if len(ranks) > 1 else ''} {', '.join(map(str, ranks))}"
