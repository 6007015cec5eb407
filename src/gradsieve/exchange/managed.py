"""Process groups that others make and manage.

torch.distributed does not know them, or takes them for a group of one: they have no list of ranks
and no store, and no further group of their ranks can be made.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from gradsieve.errors import SieveError


class ManagedGroup:
    """Collectives that need only ``size()`` and ``alltoall_base`` of a group.

    There is one order of collectives: while the communication thread runs, only that thread calls
    them. Tensors are sent from CPU memory.

    Args:
        group: a process group or a backend, such as a ``ProcessGroupGloo``.

    Raises:
        TypeError: `group` lacks one of the two.
    """

    def __init__(self, group: Any) -> None:
        if not all(callable(getattr(group, name, None)) for name in ("size", "alltoall_base")):
            raise TypeError(
                "a group that others manage has the methods size() and alltoall_base(), such as "
                f"those of torch.distributed.ProcessGroupGloo; found {group!r}"
            )
        self._group = group
        # A manager may change the group between two exchanges.
        self._size = int(group.size())
        self._rank: int | None = None

    def meet(self) -> None:
        """Find out the rank of this process, which groups do not always know.

        All ranks must call it together, before anything else.

        Raises:
            RuntimeError: a rank has died or stalled, or the group takes no tensors in CPU memory.
        """
        mine = torch.zeros(self._size, dtype=torch.int64, device="cpu")
        self.all_to_all(mine, torch.arange(self._size, dtype=torch.int64, device="cpu"))
        self._rank = int(mine[0])

    def size(self) -> int:
        return self._size

    def rank(self) -> int:
        if self._rank is None:
            raise SieveError("the ranks of this group have not met yet")
        return self._rank

    def all_to_all(
        self,
        received: Tensor,
        sent: Tensor,
        arriving: Sequence[int] | None = None,
        leaving: Sequence[int] | None = None,
    ) -> None:
        """Send every rank a part of a tensor, in rank order.

        Args:
            arriving, leaving: the lengths of the parts; None for parts of one length.

        Raises:
            RuntimeError: a rank has died or stalled.
        """
        even = [len(sent) // self._size] * self._size
        splits = [list(even if given is None else given) for given in (arriving, leaving)]
        try:
            work = self._group.alltoall_base(received, sent, *splits, dist.AllToAllOptions())
            if work is not None:
                work.wait()
        except Exception as error:
            # A group that its manager has ended may raise any error.
            raise RuntimeError(str(error) or type(error).__name__) from error

    def all_gather(self, mine: Tensor) -> list[Tensor]:
        """Return the tensors of all ranks, which have one shape. Raises what `all_to_all` does."""
        sent = mine.reshape(1, -1).repeat(self._size, 1)
        received = torch.empty_like(sent)
        self.all_to_all(received, sent)
        return [other.view_as(mine) for other in received]

    def all_reduce(self, tensor: Tensor) -> None:
        """Replace a tensor by its sum over all ranks, which is added up in rank order.

        Raises what `all_to_all` does.
        """
        share = -(-tensor.numel() // self._size)
        padded = torch.zeros(self._size * share, dtype=tensor.dtype, device="cpu")
        padded[: tensor.numel()] = tensor.reshape(-1)
        received = torch.empty_like(padded)
        self.all_to_all(received, padded)
        total, *others = received.view(self._size, share)
        for other in others:
            total += other
        sums = torch.cat(self.all_gather(total))
        tensor.copy_(sums[: tensor.numel()].view_as(tensor))


AnyGroup = dist.ProcessGroup | ManagedGroup


def is_managed(group: object) -> bool:
    """Return whether torch.distributed does not know the ranks of a group."""
    if not hasattr(group, "alltoall_base"):
        return False
    if not isinstance(group, dist.ProcessGroup):
        return True
    try:
        ranks = dist.get_process_group_ranks(group)
    except (KeyError, ValueError, RuntimeError):
        return True
    # A group that others have registered with torch is listed with this rank alone.
    is_foreign = type(group) is not dist.ProcessGroup
    return len(ranks) != group.size() or (is_foreign and len(ranks) == 1)
