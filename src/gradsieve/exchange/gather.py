"""Gather: every rank's frame travels to every other rank."""

from typing import cast

import torch
import torch.distributed as dist
from torch import Tensor


class ExchangeError(RuntimeError):
    """The frames did not arrive: a rank died, stalled past the timeout or sent garbage."""


class Gather:
    """One exchange of sizes, then one uneven transfer; traffic grows with the number of ranks."""

    def __init__(self, group: dist.ProcessGroup) -> None:
        self.group = group
        self.rank = dist.get_rank(group)
        self.world_size = dist.get_world_size(group)

    def exchange(self, frame: Tensor) -> list[Tensor]:
        """All ranks' frames (uint8, on the CPU) in rank order; this rank's own is `frame` itself.

        Raises:
            ExchangeError: on the ranks that notice; the process group is then unusable.
        """
        if self.world_size == 1:
            return [frame]
        try:
            sizes = self.gather_sizes(frame.numel())
            return self.gather_frames(frame, sizes)
        except RuntimeError as error:
            raise unreachable(self.group, error) from error

    def gather_sizes(self, size: int) -> list[int]:
        mine = torch.tensor([size], dtype=torch.int64)
        sizes = [torch.empty_like(mine) for _ in range(self.world_size)]
        dist.all_gather(sizes, mine, group=self.group)
        return cast(list[int], torch.cat(sizes).tolist())

    def gather_frames(self, frame: Tensor, sizes: list[int]) -> list[Tensor]:
        arriving = [0 if rank == self.rank else size for rank, size in enumerate(sizes)]
        leaving = [0 if rank == self.rank else frame.numel() for rank in range(self.world_size)]
        received = torch.empty(sum(arriving), dtype=torch.uint8)
        sent = frame.repeat(self.world_size - 1)
        dist.all_to_all_single(received, sent, arriving, leaving, group=self.group)
        frames = list(torch.split(received, arriving))
        frames[self.rank] = frame
        return frames


def unreachable(group: dist.ProcessGroup, error: RuntimeError) -> ExchangeError:
    return ExchangeError(
        f"rank {dist.get_rank(group)} could not exchange gradients with the other "
        f"{dist.get_world_size(group) - 1} ranks: {first_line(error)}. A rank has died or stalled; "
        "its own output says why. Start again from the last checkpoint."
    )


def first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
