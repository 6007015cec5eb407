"""Exchange by nodes, the ranks that share a machine.

The ranks of a node add up among themselves. Then each sends one part to the other nodes, so that
the slow link between them carries each part once per node.
"""

import os
from collections.abc import Callable, Sequence
from typing import cast

import torch
import torch.distributed as dist
from torch import Tensor

from gradsieve.errors import MismatchError, SieveError
from gradsieve.exchange.frames import FrameExchange, OwnGroup
from gradsieve.exchange.new_group import group_of_its_own
from gradsieve.exchange.notes import Notes
from gradsieve.runtime.threads import usable_cores

SIZE_BYTES = 8
Heard = list[list[float]]


def stated_node_size(given: int | None) -> int:
    """Return the number of ranks of a node, as given or as the launcher has set it."""
    return given if given is not None else int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def computing_threads(device: torch.device) -> int:
    """Return the number of threads that backward passes keep busy on the cores of this process.

    If the process may use all cores of the machine, the threads of the node's other ranks count,
    too.
    """
    if device.type != "cpu":
        return 1
    shared = usable_cores() == os.cpu_count()
    return torch.get_num_threads() * (stated_node_size(None) if shared else 1)


def require_nodes(stated: Sequence[int]) -> int:
    """Return the node size on which all ranks agree.

    Args:
        stated: the node size that each rank states.

    Raises:
        SieveError: the sizes differ, or the ranks do not fall into nodes of that size.
    """
    size, ranks = stated[0], len(stated)
    if any(other != size for other in stated) or ranks % size:
        found = f"{ranks} ranks state nodes of {', '.join(map(str, sorted({*stated})))} ranks"
        raise SieveError(
            f"{found}, and do not fall into nodes of one size; give attach on every rank the "
            "number of consecutive ranks that share a machine as node_size (else it is the "
            "launcher's LOCAL_WORLD_SIZE), or choose another exchange"
        )
    return size


class Nodes:
    """Exchanges twice: with the ranks at the same place in every node, then within the node.

    Args:
        group: the ranks. Every `size` consecutive ones share a machine.
        notes: the notes of this rank and of all others.
        join: a function that makes one note of those of several ranks.
        on_host: whether the tensors that are added up are in CPU memory.

    All ranks of `group` must make it together.
    """

    def __init__(
        self,
        group: dist.ProcessGroup,
        size: int,
        notes: Notes,
        join: Callable[[Heard], list[float]],
        *,
        on_host: bool = False,
    ) -> None:
        rank, ranks = dist.get_rank(group), dist.get_world_size(group)
        self.size, self.place, self.count = size, rank % size, ranks // size
        mates = range(rank - self.place, rank - self.place + size)
        self._dense = OwnGroup(group_of_its_own(group, mates, on_host=on_host))
        self.within = FrameExchange(group_of_its_own(group, mates))
        same_place = range(self.place, ranks, size)
        self.across = FrameExchange(group_of_its_own(group, same_place), notes)
        self._notes, self._join = notes, join

    @property
    def groups(self) -> list[OwnGroup]:
        return [self._dense, self.within, self.across]

    def average(self, buffer: Tensor) -> None:
        """Replace a buffer by its mean over the ranks of the node, with the same bits on each.

        Raises:
            ExchangeError: a rank of the node has died or stalled.
        """
        self.add_up(buffer.div_(self.size))

    def add_up(self, buffer: Tensor) -> None:
        """Replace a buffer by its sum over the ranks of the node. Raises what `average` raises."""
        if self.size == 1:
            return
        with self._dense.failing():
            dist.all_reduce(buffer, group=self._dense.group)

    def to_all(self, frame: Tensor) -> list[list[Tensor]]:
        """Send one frame (uint8, on the CPU) to every rank.

        Returns:
            For each place in a node, the frames of all nodes, in their order. This rank's own is
            `frame` itself.

        Raises:
            ExchangeError: on the ranks that notice a failure.
            MismatchError: a rank of the node has passed on a bundle that cannot be read.
        """
        arrived = self.across.to_all(frame)
        passed_on = Notes(self._join(self._notes.heard))
        self.within.notes = passed_on
        bundles = self.within.to_all(bundled(arrived))
        self._notes.heard = passed_on.heard
        self._notes.seconds += passed_on.seconds
        return [
            arrived if place == self.place else unbundled(bundle, self.count)
            for place, bundle in enumerate(bundles)
        ]


def bundled(frames: Sequence[Tensor]) -> Tensor:
    sizes = torch.tensor([frame.numel() for frame in frames], dtype=torch.int64, device="cpu")
    return torch.cat([sizes.view(torch.uint8), *frames])


def unbundled(bundle: Tensor, count: int) -> list[Tensor]:
    head = count * SIZE_BYTES
    # A view needs aligned memory, and a bundle may start at any byte: copy it.
    bytes_of_sizes = bundle[:head].clone()
    whole = bytes_of_sizes.numel() == head
    sizes = cast(list[int], bytes_of_sizes.view(torch.int64).tolist()) if whole else [-1]
    if min(sizes) < 0 or head + sum(sizes) != bundle.numel():
        raise MismatchError(
            f"a rank of this node passed on frames of {sizes} bytes in {bundle.numel()}; the "
            "ranks run different versions of gradsieve"
        )
    return list(torch.split(bundle[head:], sizes))
