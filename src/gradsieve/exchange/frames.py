"""Frames between the ranks of a group."""

import time
from collections.abc import Sequence
from typing import cast

import torch
import torch.distributed as dist
from torch import Tensor

from gradsieve.exchange.roll_call import absent_ranks


class ExchangeError(RuntimeError):
    """The frames did not arrive: a rank died, stalled past the timeout or sent garbage."""


class Notes:
    """Numbers that travel with the sizes of frames, to every rank; as many on all ranks."""

    def __init__(self, mine: Sequence[float] = ()) -> None:
        self.mine = list(mine)
        self.heard = [self.mine]
        """The last ones of all ranks."""
        self.seconds = 0.0
        """Of all exchanges of sizes, in which ranks wait for the last one."""


class FrameExchange:
    """One exchange of sizes, with notes, then one uneven transfer."""

    def __init__(self, group: dist.ProcessGroup, notes: Notes | None = None) -> None:
        self.group = group
        self.rank = dist.get_rank(group)
        self.world_size = dist.get_world_size(group)
        self.notes = Notes() if notes is None else notes

    def to_all(self, frame: Tensor) -> list[Tensor]:
        """Send one frame (uint8, on the CPU) to every rank.

        Returns:
            All ranks' frames, in rank order; this rank's own is `frame` itself.

        Raises:
            ExchangeError: on the ranks that notice; the process group is then unusable.
        """
        return self.to_each([frame] * self.world_size)

    def to_each(self, frames: Sequence[Tensor]) -> list[Tensor]:
        """Send every rank a frame of its own, in rank order; returns and raises as `to_all`."""
        own = frames[self.rank]
        if self.world_size == 1:
            self.notes.heard = [self.notes.mine]
            return [own]
        try:
            leaving = [0 if rank == self.rank else f.numel() for rank, f in enumerate(frames)]
            arriving = self.exchange_sizes(leaving)
            received = torch.empty(sum(arriving), dtype=torch.uint8, device="cpu")
            sent = torch.cat([f for rank, f in enumerate(frames) if rank != self.rank])
            dist.all_to_all_single(received, sent, arriving, leaving, group=self.group)
        except RuntimeError as error:
            raise unreachable(self.group, error) from error
        arrived = list(torch.split(received, arriving))
        arrived[self.rank] = own
        return arrived

    def exchange_sizes(self, leaving: list[int]) -> list[int]:
        start = time.perf_counter()
        # Bytes of a frame and the numbers of a note are exact in float64.
        told = torch.tensor(
            [[size, *self.notes.mine] for size in leaving], dtype=torch.float64, device="cpu"
        )
        heard = torch.empty_like(told)
        dist.all_to_all_single(heard, told, group=self.group)
        self.notes.heard = heard[:, 1:].tolist()
        self.notes.seconds += time.perf_counter() - start
        return cast(list[int], heard[:, 0].long().tolist())


def numbers_of_all(exchange: FrameExchange, mine: Tensor) -> list[list[float]]:
    """Float64 numbers of every rank, as many on all."""
    arrived = exchange.to_all(mine.view(torch.uint8))
    # Copied, since what has arrived may start at any byte.
    return [cast(list[float], other.clone().view(torch.float64).tolist()) for other in arrived]


def unreachable(group: dist.ProcessGroup, error: RuntimeError) -> ExchangeError:
    """Waits a few seconds for the other ranks' answers, to tell which of them give none."""
    absent = absent_ranks(group)
    who = "a rank has"
    if absent:
        names = ", ".join(map(str, absent))
        who = f"rank {names} has" if len(absent) == 1 else f"ranks {names} have"
    return ExchangeError(
        f"rank {dist.get_rank()} could not exchange gradients with the other "
        f"{dist.get_world_size(group) - 1} ranks of its group: {first_line(error)}. {who} died "
        "or stalled; the output there says why. Start again from the last checkpoint."
    )


def first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
