"""Make sure that all ranks take part: they meet in the store of the job before any exchange."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from weakref import WeakKeyDictionary

import torch
import torch.distributed as dist
from torch import Tensor

from gradsieve.errors import MismatchError, has, named_ranks
from gradsieve.exchange.frames import ExchangeError, first_line, unreachable
from gradsieve.exchange.managed import AnyGroup, ManagedGroup
from gradsieve.exchange.meeting import DIFFER, Meeting, in_words
from gradsieve.exchange.store import JobStore, StoreError

PATIENCE = 3.0
"""Seconds after which ranks find out whether a missing one is late or trains without gradsieve."""
PROBE = "probe"
PROBED_RANKS = 50
"""Largest number of ranks that add to a probe. Their sum is exact in bfloat16."""
OUTER = "an OuterSync"
_held: "WeakKeyDictionary[dist.ProcessGroup, int]" = WeakKeyDictionary()
"""The number of meetings of each group to which all ranks have come."""


def require_attendance(group: dist.ProcessGroup, bucket: Tensor) -> None:
    """Meet the other ranks that train with gradsieve, before the first step.

    A rank that does not come in time is either late or trains with plain DDP, which all-reduces
    its first bucket. The ranks that have come then all-reduce a tensor of that size (the probe),
    which also answers a rank with plain DDP. Late ranks add to the probe when they come. The sum
    has the expected value only if every rank has added to it.

    Args:
        bucket: the buffer of this rank's first bucket.

    Raises:
        ExchangeError: a rank has died or stalled.
        MismatchError: on every rank that has come. The message names the ranks that train without
            gradsieve or have another bucket.
    """
    if group.size() == 1:
        return
    try:
        meeting, failed = next_meeting(group)
        meeting.come(word_for(bucket))
        verdict = meeting.verdict(PATIENCE)
        if verdict is None:
            verdict = meeting.decide(PROBE)
            meeting.warn_of_missing(
                "it is late to its first step, or trains without gradsieve (call attach on every "
                "rank)"
            )
    except StoreError:
        return
    with counted(group, failed):
        if verdict == DIFFER:
            raise why(meeting, PATIENCE)
        if verdict == PROBE and not all_have_added(group, meeting, bucket):
            raise why(meeting)


@contextmanager
def outer_attendance(group: AnyGroup) -> Iterator[None]:
    """Meet the other ranks that make an OuterSync.

    An error inside the context names the ranks that make none. A managed group has no store in
    which they could meet.

    Raises:
        ExchangeError: a rank has died or stalled, or makes no OuterSync.
        MismatchError: a rank uses `attach` instead.
    """
    if group.size() == 1 or isinstance(group, ManagedGroup):
        yield
        return
    try:
        meeting, failed = next_meeting(group)
        meeting.come(OUTER)
        verdict = meeting.verdict(PATIENCE)
        if verdict is None:
            meeting.warn_of_missing("make an OuterSync on every rank")
    except StoreError:
        yield
        return
    with counted(group, failed):
        if verdict in (DIFFER, PROBE):
            raise why(meeting, PATIENCE)
        try:
            yield
        except ExchangeError as error:
            raise why_none(meeting, error) from error


@contextmanager
def counted(group: dist.ProcessGroup, failed: JobStore) -> Iterator[None]:
    """Count the meeting as held, or note its failure for the ranks that have not come."""
    try:
        yield
    except BaseException:
        with suppress(StoreError):
            failed.set("failed", "1")
        raise
    _held[group] = _held.get(group, 0) + 1


def next_meeting(group: dist.ProcessGroup) -> tuple[Meeting, JobStore]:
    """Return the next meeting, and the store in which its failure is noted for late ranks."""
    failures = 0
    while True:
        name = f"{_held.get(group, 0)}.{failures}"
        failed = JobStore(f"failures/{group.group_name}/{name}")
        if failed.get("failed") is None:
            return Meeting(group, name), failed
        failures += 1


def word_for(bucket: Tensor) -> str:
    return f"{bucket.numel()} gradients of {str(bucket.dtype).removeprefix('torch.')}"


def all_have_added(group: dist.ProcessGroup, meeting: Meeting, bucket: Tensor) -> bool:
    """All-reduce a probe of the size of the first rank's bucket, and return whether all added."""
    agrees = meeting.first == word_for(bucket)
    share = pattern(*read(meeting.first), bucket.device)
    probe = share * float(agrees and dist.get_rank(group) < PROBED_RANKS)
    try:
        dist.all_reduce(probe, group=group)
    except RuntimeError as error:
        lost = unreachable(group, error)
        raise why(meeting, error=lost) from error
    return torch.equal(probe, share * min(PROBED_RANKS, group.size()))


def read(word: str) -> tuple[int, torch.dtype]:
    """Parse a word of `word_for` into a size and a dtype."""
    numel, *_, name = word.split()
    dtype = getattr(torch, name)
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"a rank has said {word!r} of its first gradients")
    return int(numel), dtype


def pattern(numel: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return numbers that are unlikely as gradients: -3, 5, -3, 5, …"""
    tensor = torch.full((numel,), -3.0, dtype=dtype, device=device)
    tensor[1::2] = 5.0
    return tensor


def why(
    meeting: Meeting, seconds: float = 0.0, error: ExchangeError | None = None
) -> MismatchError | ExchangeError:
    """Return the error that the words of the ranks explain, or `error` if they explain none."""
    try:
        said, missing = meeting.words(seconds), meeting.missing()
    except StoreError:
        said, missing = {}, []
    if len({*said.values()}) > 1:
        return MismatchError(
            f"the ranks begin with different gradients ({in_words(said)}): build the model and "
            "DDP, and attach gradsieve, in the same way on every rank"
        )
    if error is not None:
        return error
    who = f"{named_ranks(missing)} train{'s' if len(missing) == 1 else ''}"
    return MismatchError(
        f"{who if missing else 'a rank trains'} without gradsieve: call attach on every rank, "
        "before its first step"
    )


def why_none(meeting: Meeting, error: ExchangeError) -> MismatchError | ExchangeError:
    """Return the error of a failed `outer_attendance`, by the words of the ranks."""
    with suppress(StoreError):
        if missing := meeting.missing():
            return ExchangeError(
                f"{named_ranks(missing)} {has(missing)} made no OuterSync, and the others have "
                f"waited in vain ({first_line(error.__cause__ or error)}): make one on every rank. "
                "Where that is so, the output there says what came before."
            )
    return why(meeting, error=error)
