"""The process groups that gradients travel in, made when all ranks begin a step together."""

import socket
import zlib

import torch
import torch.distributed as dist
from torch import Tensor

from gradsieve.errors import MismatchError, SieveError
from gradsieve.exchange.accord import Accord
from gradsieve.exchange.attendance import require_attendance
from gradsieve.exchange.cost import Links, NodeCost
from gradsieve.exchange.frames import ExchangeError, FrameExchange, OwnGroup, numbers_of_all
from gradsieve.exchange.names import Exchange
from gradsieve.exchange.new_group import group_of_its_own, groups_joined, require_alike_names
from gradsieve.exchange.nodes import Nodes, require_nodes, stated_node_size
from gradsieve.exchange.notes import Notes
from gradsieve.exchange.probe import agreed, measure_link
from gradsieve.exchange.worker import ExchangeWorker
from gradsieve.telemetry.report import slowest_of

SECONDS_TO_PART = 10.0
"""How long a rank waits for the others to part as well, after which nothing waits for them."""


class Groups:
    """The groups of a process group whose ranks train together.

    The verbs are collectives: all ranks call them together, at the beginning of a step. The
    attributes are what those have made.

    Args:
        group: the ranks that exchange; None: the default group.
        node_size: as in `SieveConfig`.
        notes: what ranks tell each other with their frames.

    Raises:
        ValueError: `group` is one that this rank is no member of.
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
    def own_place(self) -> tuple[int, int]:
        """This rank in the group, and the group's size; 0 of 1 without torch.distributed."""
        if not (dist.is_available() and dist.is_initialized()):
            return 0, 1
        return self.group.rank(), self.group.size()

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
        self._everyone = FrameExchange(group_of_its_own(self.group), self._notes, self._accord.hear)

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
        """All ranks, after `agree`."""
        if self._everyone is None:
            raise SieveError("the ranks have not met yet")
        return self._everyone

    @property
    def nodes(self) -> Nodes:
        """The ranks by node, after `connect_nodes`."""
        if self._nodes is None:
            raise SieveError("the ranks have not met by nodes yet")
        return self._nodes

    @property
    def dense(self) -> dist.ProcessGroup:
        """The group for all-reduces of everything, after `connect_dense`."""
        return self.group if self._dense is None else self._dense

    def connect_dense(self) -> None:
        """Make a group for all-reduces, where the ranks' own does not work on their device."""
        if self._dense is None and self.on_host and "gloo" not in dist.get_backend(self.group):
            self._dense = group_of_its_own(self.group)

    def connect_nodes(self) -> None:
        """Make the groups within and across nodes.

        Raises:
            SieveError: on every rank, where they do not fall into nodes of one size, or torch
                cannot make their groups.
        """
        if self._nodes is None:
            self._require_alike_names()
            self._make_nodes(require_nodes([size for size, _ in self._tell_nodes()]))

    def _require_alike_names(self) -> None:
        mine = torch.tensor([groups_joined()], dtype=torch.float64, device="cpu")
        require_alike_names([int(n) for (n,) in numbers_of_all(self.everyone, mine)])

    def _make_nodes(self, size: int) -> Nodes:
        self._nodes = Nodes(self.group, size, self._notes, slowest_of, on_host=self.on_host)
        return self._nodes

    def add_up_on_node(self, tensor: Tensor) -> None:
        """Replace it by the sum of the node's ranks, after `connect_nodes`."""
        self.nodes.add_up(tensor)

    def open_another(self, notes: Notes) -> FrameExchange:
        """Make one more group of all ranks."""
        exchange = FrameExchange(group_of_its_own(self.group), notes)
        self._others.append(exchange)
        return exchange

    def measure(self) -> Links:
        """Measure the link of all ranks, and those within and across nodes."""
        everyone, nodes, ranks = self.everyone, self._find_nodes(), self.group.size()
        link = measure_link(everyone)
        if nodes is None:
            return Links(ranks, link)
        across = agreed(everyone, measure_link(nodes.across))
        within = agreed(everyone, measure_link(nodes.within))
        return Links(ranks, link, NodeCost(nodes.size, within, across))

    def _find_nodes(self) -> Nodes | None:
        """None where they are not of one size, or there is one of them, or a rank is one.

        Nor where the launcher's nodes are not those of this group, which may have one rank of each
        machine.
        """
        stated, ranks = self._tell_nodes(), self.group.size()
        size = stated[0][0]
        fit = all(other == size for other, _ in stated) and 1 < size < ranks and not ranks % size
        hosts = [host for _, host in stated]
        together = all(len({*hosts[n : n + size]}) == 1 for n in range(0, ranks, size))
        if not (fit and (together or self._node_size is not None)):
            return None
        if self._nodes is not None:
            return self._nodes
        self._require_alike_names()
        return self._make_nodes(size)

    def _tell_nodes(self) -> list[tuple[int, int]]:
        """Each rank's node size, and a number for its machine."""
        host = zlib.crc32(socket.gethostname().encode())
        mine = torch.tensor(
            [stated_node_size(self._node_size), host], dtype=torch.float64, device="cpu"
        )
        return [(int(size), int(host)) for size, host in numbers_of_all(self.everyone, mine)]
