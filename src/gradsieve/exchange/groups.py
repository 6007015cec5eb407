"""The process groups in which gradients travel.

They are made by explicit calls at the beginning of a step, because making one is a collective.
"""

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
from gradsieve.exchange.managed import AnyGroup, ManagedGroup, is_managed
from gradsieve.exchange.new_group import group_of_its_own, groups_joined, require_alike_names
from gradsieve.exchange.nodes import Nodes, require_nodes, stated_node_size
from gradsieve.exchange.notes import Notes
from gradsieve.exchange.probe import agreed, measure_link
from gradsieve.exchange.topology_names import Exchange
from gradsieve.exchange.worker import ExchangeWorker
from gradsieve.telemetry.report import slowest_of

SECONDS_TO_PART = 10.0
"""Seconds that a rank waits for its worker to stop, which it does once the others have parted."""


class Groups:
    """The process groups of the ranks that train together.

    The methods that require, agree, announce, connect, open or measure are collectives: all ranks
    must call them together, at the beginning of a step. The properties only return what they have
    made.

    Args:
        group: the ranks that exchange; None takes the default group.
        node_size: see `SieveConfig`.
        notes: the numbers that ranks tell each other with their frames.

    Raises:
        TypeError: `group` is a device mesh.
        ValueError: this rank is not in `group`.
    """

    def __init__(
        self, group: dist.ProcessGroup | None, node_size: int | None, notes: Notes
    ) -> None:
        if hasattr(group, "get_group"):
            raise TypeError(
                'process_group is a device mesh: give its group, as mesh["replicate"].get_group()'
            )
        managed = ManagedGroup(group) if is_managed(group) else None
        if group is not None and not (managed or isinstance(group, dist.ProcessGroup)):
            raise ValueError(
                "process_group is a group that this rank is no member of: only its members take "
                f"part in the exchange (found {group!r})"
            )
        self._group: AnyGroup | None = group if managed is None else managed
        self._node_size, self._notes = node_size, notes
        self.on_host = False
        """Whether dense sums are in CPU memory, even if the group works on another device."""
        self._dense: AnyGroup | None = None
        self._everyone: FrameExchange | None = None
        self._nodes: Nodes | None = None
        self._accord: Accord | None = None
        self._others: list[OwnGroup] = []

    @property
    def group(self) -> AnyGroup:
        group = self._group if self._group is not None else dist.group.WORLD
        if group is None:
            raise SieveError("call torch.distributed.init_process_group before training")
        return group

    @property
    def own_place(self) -> tuple[int, int]:
        """The rank and the world size in the group; 0 and 1 without torch.distributed."""
        if self.is_managed:
            return self.group.rank(), self.group.size()
        if not (dist.is_available() and dist.is_initialized()):
            return 0, 1
        return self.group.rank(), self.group.size()

    def use_unless_given(self, group: dist.ProcessGroup) -> None:
        if self._group is None:
            self._group = ManagedGroup(group) if is_managed(group) else group
        self.known_group()

    @property
    def is_managed(self) -> bool:
        """Whether others manage the group. All collectives of a step are then the worker's."""
        return isinstance(self._group, ManagedGroup)

    @property
    def managed_rank(self) -> int | None:
        """The rank in a group that others manage, once its ranks have met; None in others."""
        return self.group.rank() if self.is_managed else None

    def known_group(self) -> dist.ProcessGroup:
        """Return the group. Raise SieveError if torch.distributed does not know its ranks."""
        group = self.group
        if isinstance(group, ManagedGroup):
            raise SieveError(
                "torch.distributed does not know the ranks of this process group, as others "
                "manage it, and only gs.OuterSync works in such a group, without nodes and without "
                'a Recorder: gs.OuterSync(model, process_group=group, exchange="gather"). For all '
                "else make the group with init_process_group or new_group"
            )
        return group

    def replace(self, group: ManagedGroup) -> None:
        """Go on in another managed group. Its ranks must meet and agree first."""
        self._group = group
        self._everyone = self._nodes = self._accord = None
        self._others = []

    # Agreement between the ranks.

    @property
    def have_met(self) -> bool:
        return self._everyone is not None

    def require_all_ranks(self, bucket: Tensor) -> None:
        """Meet the other ranks, before anything else. Raises what `require_attendance` raises."""
        require_attendance(self.known_group(), bucket)

    def agree(self, exchange: Exchange) -> None:
        """Begin with this topology, which all ranks have. From then on they `have_met`."""
        self._accord = Accord(self.group, exchange)
        self._everyone = FrameExchange(group_of_its_own(self.group), self._notes, self._accord.hear)

    def begin_step(self, step: int, exchange: Exchange) -> bool:
        """Begin a step, and return whether this rank must `announce_exchange` first."""
        if self._accord is None:
            return False
        self._accord.begin(step, exchange)
        return self._accord.is_changed

    def announce_exchange(self) -> None:
        """Tell all ranks that another topology was set here, and check that theirs is the same.

        Raises:
            ExchangeError: a rank has died or stalled.
            MismatchError: on every rank, if the topology was not set on all of them.
        """
        if self._accord is not None:
            everyone = self.everyone
            everyone.exchange_sizes([self._accord.code] * everyone.world_size)

    def look(self) -> None:
        """Raise MismatchError if the topologies of the ranks differ. Call it during long waits."""
        if self._accord is not None:
            self._accord.look()

    def mismatch_behind(self, error: BaseException) -> MismatchError | None:
        """Return the difference between the ranks that explains an error; None if there is none."""
        if isinstance(error, MismatchError):
            return error
        if isinstance(error, ExchangeError):
            try:
                self.look()
            except MismatchError as mismatch:
                return mismatch
        return None

    def part(self, worker: ExchangeWorker) -> None:
        """Close all groups, which ends every wait in them. The ranks must meet again to go on."""
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

    # The groups.

    @property
    def everyone(self) -> FrameExchange:
        """The exchange between all ranks, after `agree`."""
        if self._everyone is None:
            raise SieveError("the ranks have not met yet")
        return self._everyone

    @property
    def nodes(self) -> Nodes:
        """The exchange by nodes, after `connect_nodes`."""
        if self._nodes is None:
            raise SieveError("the ranks have not met by nodes yet")
        return self._nodes

    @property
    def dense(self) -> AnyGroup:
        """The group for dense all-reduces, after `connect_dense`."""
        return self.group if self._dense is None else self._dense

    def connect_dense(self) -> None:
        """Make a group for dense all-reduces, if that of the user does not work on the CPU."""
        if self._dense is not None or self.is_managed or not self.on_host:
            return
        if "gloo" not in dist.get_backend(self.known_group()):
            self._dense = group_of_its_own(self.group)

    def connect_nodes(self) -> None:
        """Make the groups within nodes and between nodes.

        Raises:
            SieveError: on every rank, if the ranks do not form nodes of one size, or torch cannot
                make the groups.
        """
        if self._nodes is None:
            self.known_group()
            self._require_alike_names()
            self._make_nodes(require_nodes([size for size, _ in self._tell_nodes()]))

    def _require_alike_names(self) -> None:
        mine = torch.tensor([groups_joined()], dtype=torch.float64, device="cpu")
        require_alike_names([int(n) for (n,) in numbers_of_all(self.everyone, mine)])

    def _make_nodes(self, size: int) -> Nodes:
        self._nodes = Nodes(self.known_group(), size, self._notes, slowest_of, on_host=self.on_host)
        return self._nodes

    def add_up_on_node(self, tensor: Tensor) -> None:
        """Replace a tensor by its sum over the ranks of the node, after `connect_nodes`."""
        self.nodes.add_up(tensor)

    def open_another(self, notes: Notes) -> FrameExchange:
        """Make one more group of all ranks, and return its exchange."""
        exchange = FrameExchange(group_of_its_own(self.group), notes)
        self._others.append(exchange)
        return exchange

    def measure(self) -> Links:
        """Measure the links between all ranks, within nodes and between nodes."""
        everyone, nodes, ranks = self.everyone, self._find_nodes(), self.group.size()
        link = measure_link(everyone)
        if nodes is None:
            return Links(ranks, link)
        across = agreed(everyone, measure_link(nodes.across))
        within = agreed(everyone, measure_link(nodes.within))
        return Links(ranks, link, NodeCost(nodes.size, within, across))

    def _find_nodes(self) -> Nodes | None:
        """Return the exchange by nodes, or None if the ranks form no useful nodes or are managed.

        They do not if nodes differ in size, if there is only one node, or if each rank is a node.
        They also do not if the nodes of the launcher are not those of this group, which may have
        one rank of each machine.
        """
        if self.is_managed:
            return None
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
        """Return for each rank its node size and a number for its machine."""
        host = zlib.crc32(socket.gethostname().encode())
        mine = torch.tensor(
            [stated_node_size(self._node_size), host], dtype=torch.float64, device="cpu"
        )
        return [(int(size), int(host)) for size, host in numbers_of_all(self.everyone, mine)]
