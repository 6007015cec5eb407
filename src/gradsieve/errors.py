"""The errors that users catch, and the words that their messages share."""

from collections.abc import Sequence


class SieveError(RuntimeError):
    """gradsieve is set up in a way that cannot work. The message says what to do."""


class MismatchError(SieveError):
    """The ranks are not set up alike. The message names the ranks and what differs."""


def has(ranks: Sequence[int]) -> str:
    return "has" if len(ranks) == 1 else "have"


def named_ranks(ranks: Sequence[int]) -> str:
    """Return the ranks as text, such as ``rank 1`` or ``ranks 1, 2``."""
    return f"rank{'s' if len(ranks) > 1 else ''} {', '.join(map(str, ranks))}"
