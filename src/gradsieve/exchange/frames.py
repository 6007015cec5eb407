"""Exchange frames between the ranks of one process group."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import cast

import torch
import torch.distributed as dist
from torch import Tensor

from gradsieve.errors import has, named_ranks
from gradsieve.exchange.collectives import all_to_all
from gradsieve.exchange.managed import AnyGroup, ManagedGroup
from gradsieve.exchange.notes import Notes
from gradsieve.exchange.roll_call import absent_ranks


class ExchangeError(RuntimeError):
    """Frames did not arrive. A rank has died, stalled past the timeout or sent garbage."""


class OwnGroup:
    """A process group that no other part of the program uses. Its failures are ExchangeErrors.

    There is only one managed group, which is shared.
    """

    def __init__(self, group: AnyGroup) -> None:
        self._group: AnyGroup | None = group
        self.is_busy = False
        """Whether a thread waits in a collective."""
        self.is_given_up = False
        """Whether the ranks have parted, which then explains every failure."""

    @property
    def group(self) -> AnyGroup:
        """The process group. Raises ExchangeError after `close`."""
        if self._group is None:
            raise ExchangeError("the ranks have parted, and this group is closed")
        return self._group

    @contextmanager
    def failing(self) -> Iterator[None]:
        """Turn the failure of a collective inside into an ExchangeError."""
        self.is_busy = True
        try:
            yield
        except RuntimeError as error:
            if self.is_given_up or isinstance(error, ExchangeError):
                raise ExchangeError(first_line(error)) from error
            raise unreachable(self.group, error, lambda: self.is_given_up) from error
        finally:
            self.is_busy = False

    def close(self) -> None:
        """Destroy the group, unless a thread is in it. Other ranks that wait in it fail at once."""
        group = self._group
        if group is not None and not self.is_busy:
            # The connections end only when nothing refers to the group.
            self._group = None
            if not isinstance(group, ManagedGroup):
                dist.destroy_process_group(group)


class FrameExchange(OwnGroup):
    """Exchanges the sizes of frames, with notes, and then the frames in one uneven all-to-all.

    Args:
        notes: the numbers that ranks tell each other with the sizes.
        hear: a function that gets the sizes that all ranks have told. It may raise a SieveError.
    """

    def __init__(
        self,
        group: AnyGroup,
        notes: Notes | None = None,
        hear: Callable[[Sequence[int]], None] | None = None,
    ) -> None:
        super().__init__(group)
        self.rank = group.rank()
        self.world_size = group.size()
        self.notes = Notes() if notes is None else notes
        self._hear = hear

    def to_all(self, frame: Tensor) -> list[Tensor]:
        """Send one frame (uint8, on the CPU) to every rank.

        Returns:
            The frames of all ranks, in rank order. This rank's own is `frame` itself.

        Raises:
            ExchangeError: on the ranks that notice a failure. The process group is then unusable.
        """
        return self.to_each([frame] * self.world_size)

    def to_each(self, frames: Sequence[Tensor]) -> list[Tensor]:
        """Send every rank a frame of its own, in rank order.

        Returns and raises what `to_all` does.
        """
        own = frames[self.rank]
        if self.world_size == 1:
            self.notes.heard = [self.notes.mine]
            return [own]
        leaving = [0 if rank == self.rank else f.numel() for rank, f in enumerate(frames)]
        arriving = self.exchange_sizes(leaving)
        with self.failing():
            received = torch.empty(sum(arriving), dtype=torch.uint8, device="cpu")
            sent = torch.cat([f for rank, f in enumerate(frames) if rank != self.rank])
            all_to_all(received, sent, self.group, arriving, leaving)
        arrived = list(torch.split(received, arriving))
        arrived[self.rank] = own
        return arrived

    def exchange_sizes(self, leaving: Sequence[int]) -> list[int]:
        """Tell each rank a number, and all ranks the notes. Raises what `to_all` raises.

        Returns:
            The numbers that all ranks have told this one, in rank order.
        """
        start = time.perf_counter()
        # Sizes and notes are exact in float64.
        told = torch.tensor(
            [[size, *self.notes.mine] for size in leaving], dtype=torch.float64, device="cpu"
        )
        heard = torch.empty_like(told)
        with self.failing():
            all_to_all(heard, told, self.group)
        arriving = cast(list[int], heard[:, 0].long().tolist())
        if self._hear is not None:
            self._hear(arriving)
        self.notes.heard = heard[:, 1:].tolist()
        self.notes.seconds += time.perf_counter() - start
        return arriving


def numbers_of_all(exchange: FrameExchange, mine: Tensor) -> list[list[float]]:
    """Return the float64 numbers of every rank. All ranks must send equally many."""
    arrived = exchange.to_all(mine.view(torch.uint8))
    # A view needs aligned memory, and a frame may start at any byte: copy it.
    return [cast(list[float], other.clone().view(torch.float64).tolist()) for other in arrived]


def unreachable(
    group: AnyGroup, error: BaseException, stop: Callable[[], bool] = lambda: False
) -> ExchangeError:
    """Return an ExchangeError that names the ranks which do not answer within a few seconds.

    Args:
        error: the failure of the collective.
        stop: returns whether nobody needs the answer any more.
    """
    if isinstance(group, ManagedGroup):
        return ExchangeError(
            f"this rank could not exchange with the other {group.size() - 1} ranks of its group: "
            f"{first_line(error)}. A rank has died or stalled, or the group has ended. Make a "
            "group of the ranks that are there, and call outer.regroup(group) on all of them."
        )
    absent = absent_ranks(group, error, stop)
    who = "a rank has"
    if absent:
        who = f"{named_ranks(absent)} {has(absent)}"
    return ExchangeError(
        f"rank {dist.get_rank()} could not exchange gradients with the other "
        f"{dist.get_world_size(group) - 1} ranks of its group: {first_line(error)}. {who} died "
        "or stalled; the output there says why. Start again from the last checkpoint."
    )


def first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
