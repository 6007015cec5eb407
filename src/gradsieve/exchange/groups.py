"""The ranks that train together, and how frames get from one to another."""

import socket
import zlib

import torch
import torch.distributed as dist
from torch import Tensor

from gradsieve.bucket.plan import Way
from gradsieve.control.reports import slowest_of
from gradsieve.errors import MismatchError, SieveError
from gradsieve.exchange import (
    Accord,
    ExchangeError,
    ExchangeWorker,
    FrameExchange,
    Nodes,
    Notes,
    OwnGroup,
    group_of_its_own,
    groups_joined,
    numbers_of_all,
    require_alike_names,
    require_attendance,
    require_nodes,
    stated_node_size,
)
from gradsieve.exchange.ways import Exchange

SECONDS_TO_PART = 10.0
"""Until the other ranks have parted as well, and nothing waits for them any more."""


class Members:
    """
    Args:
        group: the default group if None.
        node_size: as in `SieveState`.
        notes: what ranks tell each other with their frames.
    """

    def __init__(
        self, group: dist.ProcessGroup | None, node_size: int | None, notes: Notes
    ) -> None:
        if group is not None and not isinstance(group, dist.ProcessGroup):
            raise ValueError(
                "process_group is a group that this rank is no member of: only its members take "
                f"part in the exchange (found {group!r})"
            )
        self._group, self._node_size, self._notes = group, node_size, notes
        self.on_host = False
        """What is added up densely lies in host memory, whatever the group was made for."""
        self._dense: dist.ProcessGroup | None = None
        self._everyone: FrameExchange | None = None
        self._nodes: Nodes | None = None
        self._accord: Accord | None = None
        self._others: list[OwnGroup] = []

    @property
    def group(self) -> dist.ProcessGroup:
        group = self._group if self._group is not None else dist.group.WORLD
        if group is None:
            raise SieveError("call torch.distributed.init_process_group before training")
        return group

    @property
    def dense_group(self) -> dist.ProcessGroup:
        """For all-reduces of everything; all ranks must ask for it for the first time together."""
        if not self.on_host or "gloo" in dist.get_backend(self.group):
            return self.group
        if self._dense is None:
            self._dense = group_of_its_own(self.group)
        return self._dense

    def use_unless_given(self, group: dist.ProcessGroup) -> None:
        if self._group is None:
            self._group = group

    # Whether they are at one.

    @property
    def have_met(self) -> bool:
        return self._everyone is not None

    def meet(self, bucket: Tensor) -> None:
        """Before anything else; raises as `require_attendance`."""
        require_attendance(self.group, bucket)

    def agree(self, exchange: Exchange) -> None:
        """All ranks begin with this exchange, as they have told each other; then `have_met`."""
        self._accord = Accord(self.group, exchange)
        _ = self.everyone

    def begin_step(self, step: int, exchange: Exchange) -> bool:
        """Whether this rank's exchange was set, so that it must `settle` with the others."""
        if self._accord is None:
            return False
        self._accord.begin(step, exchange)
        return self._accord.is_changed

    def settle(self) -> None:
        """Tell all ranks that this one's exchange was set, and hear that theirs was as well.

        Raises:
            ExchangeError: a rank has died or stalled.
            MismatchError: on every rank, where it was not.
        """
        if self._accord is not None:
            everyone = self.everyone
            everyone.exchange_sizes([self._accord.code] * everyone.world_size)

    def look(self) -> None:
        """While this rank waits for long; raises MismatchError where ranks wait in other ways."""
        if self._accord is not None:
            self._accord.look()

    def mismatch_behind(self, error: BaseException) -> MismatchError | None:
        """What an exchange has failed for, where the ranks do not exchange in the same way."""
        if isinstance(error, MismatchError):
            return error
        if isinstance(error, ExchangeError):
            try:
                self.look()
            except MismatchError as mismatch:
                return mismatch
        return None

    def part(self, worker: ExchangeWorker) -> None:
        """End what waits for other ranks, here and there; they must meet again to go on."""
        nodes = [] if self._nodes is None else self._nodes.groups
        everyone = [] if self._everyone is None else [self._everyone]
        groups = [*everyone, *nodes, *self._others]
        for group in groups:
            group.is_given_up = True
        for group in groups:
            group.close()
        worker.give_up(SECONDS_TO_PART)
        for group in groups:
            group.close()
        self._everyone = self._nodes = self._accord = None
        self._others = []

    # Their groups.

    @property
    def everyone(self) -> FrameExchange:
        """All ranks must ask for it for the first time together."""
        if self._everyone is None:
            hear = None if self._accord is None else self._accord.hear
            self._everyone = FrameExchange(group_of_its_own(self.group), self._notes, hear)
        return self._everyone

    def another_exchange(self, notes: Notes) -> FrameExchange:
        """The group of all ranks; they must ask for it together."""
        exchange = FrameExchange(group_of_its_own(self.group), notes)
        self._others.append(exchange)
        return exchange

    @property
    def nodes(self) -> Nodes:
        """As `everyone`.

        Raises:
            SieveError: on every rank, where they do not fall into nodes of one size, or torch
                cannot make their groups.
        """
        if self._nodes is None:
            mine = torch.tensor([groups_joined()], dtype=torch.float64, device="cpu")
            require_alike_names([int(n) for (n,) in numbers_of_all(self.everyone, mine)])
            size = require_nodes([size for size, _ in self._stated_nodes()])
            self._nodes = Nodes(self.group, size, self._notes, slowest_of, on_host=self.on_host)
        return self._nodes

    def several_nodes(self) -> Nodes | None:
        """None where they are not of one size, or there is one of them, or a rank is one.

        Nor where the launcher's nodes are not those of this group, which may have one rank of each
        machine. All ranks must ask together.
        """
        stated, ranks = self._stated_nodes(), self.group.size()
        size = stated[0][0]
        fit = all(other == size for other, _ in stated) and 1 < size < ranks and not ranks % size
        hosts = [host for _, host in stated]
        together = all(len({*hosts[n : n + size]}) == 1 for n in range(0, ranks, size))
        return self.nodes if fit and (together or self._node_size is not None) else None

    def _stated_nodes(self) -> list[tuple[int, int]]:
        """Each rank's node size, and a number for its machine."""
        host = zlib.crc32(socket.gethostname().encode())
        mine = torch.tensor(
            [stated_node_size(self._node_size), host], dtype=torch.float64, device="cpu"
        )
        return [(int(size), int(host)) for size, host in numbers_of_all(self.everyone, mine)]

    def add_up_on_node(self, tensor: Tensor) -> None:
        self.nodes.add_up(tensor)

    def place(self, way: Way) -> tuple[int, int]:
        """This rank's among those that a bucket is dealt to, and their number."""
        if way == "hierarchical":
            return self.nodes.place, self.nodes.size
        return self.everyone.rank, self.everyone.world_size
