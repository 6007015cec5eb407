"""Local steps with an outer optimizer, the front end for links too slow for every step."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, NoReturn

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from gradsieve.bucket.requirements import require_dtype
from gradsieve.bucket.shards import gather_no_more, local, places_of, require_replicas
from gradsieve.config import Options, SieveConfig, config_from
from gradsieve.control.loss_scale import Scaler
from gradsieve.errors import SieveError
from gradsieve.exchange import ExchangeError, ManagedGroup
from gradsieve.gathering import Gathers
from gradsieve.outer.buffers import Buffers
from gradsieve.outer.exchange import OuterExchange
from gradsieve.outer.mates import Mates, mates_of, require_no_clock
from gradsieve.outer.nesterov import Nesterov
from gradsieve.outer.record import OuterRecord
from gradsieve.outer.regroup import Groupings, Membership, meet
from gradsieve.outer.replicas import share
from gradsieve.outer.requirements import (
    require_module,
    require_no_nodes,
    require_no_start,
    require_same_parameters,
)
from gradsieve.outer.saving import load, save
from gradsieve.outer.schedule import schedule_of
from gradsieve.outer.terms import Terms
from gradsieve.outer.weights import OuterOptimizer, OuterWeights
from gradsieve.runtime.modes import ordinary_tensors
from gradsieve.runtime.torch_private import uncompiled
from gradsieve.saved.copies import refuse_copy
from gradsieve.saved.parameter_names import plain_names
from gradsieve.state import SieveState
from gradsieve.telemetry.idle import watch

if TYPE_CHECKING:
    from typing_extensions import Unpack


class OuterSync(Gathers):
    """Averages through the sieve what ranks have learned in steps of their own (local steps).

    Each rank trains its own copy of the model with its own (inner) optimizer. After every `every`
    inner steps the ranks exchange their pseudo-gradients: weights before these steps - weights
    now. These are pruned, encoded and averaged like gradients. An outer optimizer, the same on all
    ranks, steps the outer weights by the average. Each rank goes on from there, and keeps progress
    that it has not sent in its own weights. This is DiLoCo (Douillard et al. 2023, arXiv
    2311.08105, algorithm 1) with pruned pseudo-gradients.

    Make one on every rank, after the process group. It copies parameters and buffers of rank 0 to
    all ranks. To resume, first load the model and then `load_state_dict`.

    Args:
        model: a plain module; a DDP model over the ranks of one node, which then takes part as if
            it were one rank; or a model that `fully_shard` has cut over the ranks of one node, with
            the ranks that hold the same shard as `process_group`.
        config: the options of the sieve, without `start_step` and `ramp_steps`; None for defaults.
        every: the number of inner steps from one exchange to the next, or with a `Budget` a pair
            (least, most) between which its scale sets the number. None: 20, or (20, 100) with a
            `Budget` and a whole model.
        delay: the number of inner steps that run while an exchange is under way (Douillard et al.
            2025, arXiv 2501.18512). What they add to the weights stays, and is a part of the next
            pseudo-gradient.
        fragments: the number of parts of the model, of about the same size, that take turns within
            `every` steps. Each exchange carries one part.
        optimizer: a function that makes the outer optimizer from the outer weights (float32). The
            default is `Nesterov`.
        offload: "cpu" keeps outer weights, momentum and residuals in CPU memory.
        scaler: accepted as by `attach`. It has no effect, since weights have no loss scale.
        process_group: the ranks that exchange; None takes the default group.
        options: fields of `SieveConfig` by name. They replace those of `config`.

    Raises:
        TypeError: `model` is no module, an option does not exist or has the wrong type, a number
            of steps is not whole, or `optimizer` does not make a torch optimizer.
        ValueError: a number is out of range, the model has no trained parameters, the optimizer
            holds other parameters than the outer weights, or this rank is not in the group.
        SieveError: on every rank, where the ranks differ. Also if a DDP model already averages
            over the ranks that exchange, or a trained parameter has an unsupported dtype.

    Example, in a process whose default process group is initialized:

        >>> import torch
        >>> import gradsieve as gs
        >>> model = torch.nn.Linear(64, 64)
        >>> optimizer = torch.optim.AdamW(model.parameters())
        >>> outer = gs.OuterSync(model, every=2, threshold=gs.Sigma(2), min_numel=64)
        >>> for step in range(5):
        ...     model(torch.randn(8, 64)).square().mean().backward()
        ...     optimizer.step()
        ...     optimizer.zero_grad()
        ...     outer.step()
        >>> outer.inner_steps, outer.last.step
        (5, 4)
        >>> outer.finish()  # all ranks have the same weights now
    """

    @ordinary_tensors()
    def __init__(
        self,
        model: nn.Module,
        config: SieveConfig | None = None,
        *,
        every: int | Sequence[int] | None = None,
        delay: int = 0,
        fragments: int = 1,
        optimizer: OuterOptimizer = Nesterov,
        offload: Literal["cpu"] | None = None,
        scaler: Scaler | None = None,
        process_group: dist.ProcessGroup | None = None,
        **options: "Unpack[Options]",
    ) -> None:
        require_module(model)
        if offload not in (None, "cpu"):
            raise ValueError(f'offload must be "cpu" or None, got {offload!r}')
        config = config_from(type(self), config, options)
        require_no_start(config)
        self.state = SieveState(config, scaler=scaler, process_group=process_group)
        """The state of the sieve through which the pseudo-gradients are exchanged."""
        self._engine = self.state.engine
        group = self._engine.groups.group
        # A compiled module renames its parameters, and hides the DDP model inside it.
        model = uncompiled(model)
        self._mates = Mates()
        if isinstance(model, DistributedDataParallel):
            self._mates, model = mates_of(group, model), model.module
        require_no_clock(config, self._mates)
        gather_no_more(model)
        trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
        named = list(zip(plain_names([*trained]), trained.values(), strict=True))
        shards = places_of(trained.values())
        self._schedule = schedule_of(every, fragments, delay, config.policy, shards)
        if isinstance(group, ManagedGroup):
            require_no_nodes(self.state.exchange)
            meet(group)
        else:
            require_replicas(named, dist.get_process_group_ranks(group))
        device = None if offload is None else torch.device(offload)
        self._terms = Terms(model, self._schedule, self.state)
        self._terms.require_alike_at_start(group, *self._mates.outside)
        for name, parameter in named:
            require_dtype(f"parameter {name}", parameter)
        if not isinstance(group, ManagedGroup):
            share(map(local, [*model.parameters(), *model.buffers()]), group)
        self._weights = OuterWeights(named, optimizer, fragments, device)
        self._terms.require_alike_optimizer(self.optimizer, group)
        self.state.bind_weights(model, self._weights.named, fragments=fragments)
        self.on_step: Callable[[OuterRecord], None] | None = None
        """A function that is called with each record."""
        self._model = model
        self._known = {id(parameter): name for name, parameter in trained.items()}
        self._exchange = OuterExchange(
            self.state, self._weights, self._schedule, Buffers(model), self._mates
        )
        self._groupings = Groupings(self._exchange, model)
        if isinstance(group, ManagedGroup):
            self._groupings.join()
        self._follows_budget = self._schedule.shortest < self._schedule.longest
        self._failure: BaseException | None = None
        watch.begin(self._weights)

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """The outer optimizer. Its learning rate may be set between steps, on all ranks alike."""
        return self._weights.optimizer

    @property
    def last(self) -> OuterRecord | None:
        """The record of the last exchange; None before the first one."""
        return self._exchange.last

    @property
    def every(self) -> int:
        """Number of inner steps from one exchange of a parameter to the next."""
        return self._schedule.every

    @property
    def is_exchanging(self) -> bool:
        """Whether an exchange is under way."""
        return self._exchange.under_way is not None

    @property
    def inner_steps(self) -> int:
        """Number of calls of `step` so far."""
        return self._schedule.step

    # A step.

    @ordinary_tensors()
    def step(self) -> None:
        """Count an inner step, and exchange if it is time.

        Call it after each step of the inner optimizer, equally often on all ranks.

        Raises:
            ExchangeError: a rank has died or stalled.
            SieveError: on every rank, where the weights of a rank are not finite. Also after a
                failed exchange, and where a parameter is trained that was frozen at the start.
        """
        watch.end(self._weights)
        self._prepare()
        with self._failing():
            self._schedule.advance(self._exchange.begin, self._exchange.end)
        if self._follows_budget and not self._engine.topology.is_dense:
            self._schedule.follow(self.state.sieve.thresholds.scale)
        self._tell()

    @ordinary_tensors()
    def finish(self) -> None:
        """Exchange what the ranks have learned since the last exchange, and begin a new phase.

        All ranks have the outer weights afterwards. Call it on all ranks before the model is
        evaluated or saved for good. Raises what `step` raises.
        """
        self._prepare()
        with self._failing():
            self._exchange.finish()
        self._tell()

    def _prepare(self) -> None:
        self._require_success()
        require_no_clock(self.state.config, self._mates)
        gather_no_more(self._model)
        require_same_parameters(self._model, self._known)

    @ordinary_tensors()
    def regroup(self, group: object) -> Membership:
        """Go on in another group of ranks, which someone else has made.

        Call it on all ranks that were there before, while ranks that are new make their
        `OuterSync` with the same group. The ranks may be others, more or fewer. Ranks that stay
        keep what they have not sent, and what they have learned since the last exchange. Ranks
        that are new take the outer weights, their momentum and the schedule. An exchange under way
        is ended in the old group and merged. If it has failed, all go on from the last outer
        weights, and what was to be exchanged travels with the next exchange.

        Args:
            group: the new group, or the same object if its ranks are others now.

        Returns:
            Who has joined, and who has left. What those that left had not sent is lost.

        Raises:
            TypeError: `group` is no process group. Nothing has changed.
            ExchangeError: a rank has died or stalled. `regroup` may be called again, with another
                group.
            SieveError: the group before was made by torch.distributed. Also if the ranks differ,
                or the weights of a rank are not finite.
        """
        if not self._engine.groups.is_managed:
            raise SieveError(
                "regroup changes a group that others manage, and this OuterSync has a group that "
                "torch.distributed has made: save a checkpoint, and use gs.reshard for the state"
            )
        managed = ManagedGroup(group)
        require_no_nodes(self.state.exchange)
        gather_no_more(self._model)
        if self._failure is None:
            with self._failing():
                self._failure = self._groupings.leave()
        elif not isinstance(self._failure, ExchangeError):
            self._require_success()
        # Until the ranks have met. If they cannot, this may be called again.
        self._failure = self._failure or ExchangeError("the ranks have not met")
        found = self._groupings.go_on(managed, self._terms)
        self._failure = None
        self._tell()
        return found

    @contextmanager
    def _failing(self) -> Iterator[None]:
        """Note that an exchange has failed.

        The survivors then return to the residuals, although the weights still contain them. Going
        on would exchange them twice.
        """
        try:
            yield
        except BaseException as error:
            self._failure = error
            raise

    def _tell(self) -> None:
        """Hand out the records of merged exchanges.

        It is called outside `_failing`: an error in the user's function is no failed exchange.
        """
        records, self._exchange.records = self._exchange.records, []
        for record in records:
            if self.on_step is not None:
                self.on_step(record)

    def _require_success(self) -> None:
        if self._failure is not None:
            todo = "load the last checkpoint"
            if self._engine.groups.is_managed and isinstance(self._failure, ExchangeError):
                todo = "call outer.regroup(group) on all ranks that are there"
            raise SieveError(
                "an exchange of local steps has failed, and weights and residuals no longer belong "
                f"together: {todo}"
            )

    def __getstate__(self) -> NoReturn:
        """Raise TypeError, because what ranks share cannot be copied on one of them."""
        refuse_copy(
            "an OuterSync", "save outer.state_dict() and make a new one of the copied model"
        )

    # Checkpoints.

    @property
    def managed_rank(self) -> int | None:
        """The rank in a group that others manage; None in a group of torch.distributed."""
        return self._engine.groups.managed_rank

    @ordinary_tensors()
    def state_dict(self) -> dict[str, Any]:
        """Return what this rank must save beside its model and its optimizer to resume exactly.

        Every rank must save its own. ``torch.load`` reads it with ``weights_only=True``. It waits
        for an exchange that is under way, which is still merged at its own time.

        Raises:
            ExchangeError, SieveError: see `step`.
        """
        self._require_success()
        with self._failing():
            self._exchange.arrive()
        return save(self._exchange)

    @ordinary_tensors()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` has saved on the same rank.

        Load the weights of the model first. A state that is refused changes nothing.

        Raises:
            ValueError: `state` is no such state or is damaged (the message names the field), or it
                was saved with another model, rank, world size, optimizer or options, or the
                weights of the model are not those at the time of saving.
        """
        load(self._exchange, state)
        self._failure = None
