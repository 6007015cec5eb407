"""Compare, at the first step, what must be the same on all ranks, and name what differs."""

import json
from collections.abc import Sequence
from dataclasses import dataclass

from gradsieve.codec.frame import VERSION
from gradsieve.errors import MismatchError, has, named_ranks
from gradsieve.exchange.collectives import ranks_of
from gradsieve.exchange.frames import unreachable
from gradsieve.exchange.managed import AnyGroup
from gradsieve.exchange.texts import another_version, texts_of_all
from gradsieve.runtime.version import __version__

ADVICE = {
    "versions": "Install the same version of gradsieve on every rank.",
    "settings": "Build the model and attach gradsieve in the same way on every rank.",
    "models": "Build the model and attach gradsieve in the same way on every rank.",
}


@dataclass(frozen=True, slots=True)
class Description:
    """What must be the same on every rank."""

    settings: tuple[str, ...]
    """Lines such as ``min_numel=2048``."""
    parameters: tuple[str, ...]
    """Lines such as ``conv1.weight [32, 1, 5, 5] torch.float32``, in the order of the model."""
    versions: tuple[str, ...] = (f"gradsieve={__version__}", f"frames={VERSION}")

    def text(self) -> str:
        parts = {"versions": self.versions, "settings": self.settings, "models": self.parameters}
        return json.dumps(parts)


def require_agreement(mine: Description, group: AnyGroup) -> None:
    """Compare the descriptions of all ranks. All ranks of `group` must call it together.

    Raises:
        ExchangeError: a rank has died or stalled.
        MismatchError: on every rank, if they differ. The message names the ranks and the first
            line that differs.
    """
    try:
        texts = texts_of_all(group, mine.text())
    except MismatchError:
        raise
    except RuntimeError as error:
        raise unreachable(group, error) from error
    ranks = ranks_of(group)
    by_text: dict[str, list[int]] = {}
    for rank, text in zip(ranks, texts, strict=True):
        by_text.setdefault(text, []).append(rank)
    first, *others = [(lines_of(text, said[0]), said) for text, said in by_text.items()]
    for other in others:
        require_same(*first, *other)


def lines_of(text: str, rank: int) -> dict[str, list[str]]:
    """Return the lines that `Description.text` has written.

    Those of another version of gradsieve may lack everything but the version.
    """
    try:
        parts = json.loads(text)
        lines = {what: [str(line) for line in parts[what]] for what in ADVICE if what in parts}
    except (ValueError, TypeError, RecursionError) as error:
        raise another_version(rank) from error
    if not lines.get("versions"):
        raise another_version(rank)
    return lines


def require_same(
    first: dict[str, list[str]], ranks: list[int], other: dict[str, list[str]], others: list[int]
) -> None:
    for what, advice in ADVICE.items():
        left, right = first.get(what, []), other.get(what, [])
        if left != right:
            ours, theirs = first_difference(left, right)
            raise MismatchError(
                f"the ranks have different {what}: {named_ranks(ranks)} {has(ranks)} {ours}, "
                f"{named_ranks(others)} {has(others)} {theirs}. {advice}"
            )
    raise another_version(others[0])


def first_difference(left: Sequence[str], right: Sequence[str]) -> tuple[str, str]:
    for ours, theirs in zip(left, right, strict=False):
        if ours != theirs:
            return ours, theirs
    return f"{len(left)} lines", f"{len(right)} lines"
