"""The state behind the hook: what a user holds of a sieve."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from gradsieve.bucket.bucket import Bucket
from gradsieve.bucket.rank_sieve import RankSieve
from gradsieve.bucket.requirements import require_all_buckets, require_prunable, require_torch
from gradsieve.config import Options, SieveConfig, config_from
from gradsieve.control.loss_scale import LossScale, Scaler
from gradsieve.engine import Engine
from gradsieve.errors import SieveError
from gradsieve.exchange.names import Exchange
from gradsieve.parameters.residuals import Residuals
from gradsieve.runtime.modes import ordinary_tensors
from gradsieve.runtime.torch_private import uncompiled
from gradsieve.saved.copies import (
    Copied,
    packed,
    refuse_copy,
    require_scaler,
    require_taken_up,
    take_up,
    unpack,
)
from gradsieve.saved.seal import sealed
from gradsieve.saved.sieve import VERSION, finite_note, require_own_place, require_sound
from gradsieve.telemetry.record import Observer, StepRecord, Totals

if TYPE_CHECKING:
    from typing_extensions import Unpack


class SieveState:
    """The sieve of one model on one rank: its records, residuals and checkpoints.

    `attach` makes one. Tools that register hooks themselves make it and register `sieve_hook`::

        sieve = gs.SieveState(threshold=gs.Sigma(2))
        sieve.bind(model)
        model.register_comm_hook(sieve, gs.sieve_hook)

    Args:
        config: the options, a `SieveConfig`.
        scaler: what scales the loss, a ``torch.amp.GradScaler``. Residuals and thresholds are then
            in units of the gradients without its scale, and stay right when it changes.
        process_group: the ranks that exchange; None: the default group.
        options: the fields of `SieveConfig`, in place of those of `config`.

    Raises:
        TypeError: an option does not exist or is of another type, or `scaler` has no
            ``get_scale()``.
        ValueError: an option has a value that it cannot have.
        SieveError: torch is older than 2.6, or numba is told to compile nothing.
    """

    def __init__(
        self,
        config: SieveConfig | None = None,
        *,
        scaler: Scaler | None = None,
        process_group: dist.ProcessGroup | None = None,
        **options: "Unpack[Options]",
    ) -> None:
        require_torch()
        config = config_from(type(self), config, options)
        # For the user to read and set.
        self.last: StepRecord | None = None
        """The record of the last step."""
        self.totals = Totals()
        """Sums over all steps since this was made."""
        self.on_step: Callable[[StepRecord], None] | None = None
        """Called with each record."""
        # Internal.
        self.sieve = RankSieve(config, scaler)
        self.engine = Engine(self.sieve, process_group)
        self.copied: Copied | None = None
        """What a copy remembers until it is bound."""

    @property
    def config(self) -> SieveConfig:
        """The options, with the topology that is set now."""
        return replace(self.sieve.config, exchange=self.exchange)

    @property
    def exchange(self) -> Exchange:
        """The topology, or "auto"; may be set between steps, on all ranks alike."""
        return self.engine.topology.exchange

    @exchange.setter
    def exchange(self, exchange: Exchange) -> None:
        self.sieve.config = replace(self.sieve.config, exchange=exchange)
        self.engine.topology.exchange = self.sieve.config.topology

    @property
    def step(self) -> int:
        """The number of the next step; may be set between steps, on all ranks alike."""
        return self.sieve.number

    @step.setter
    def step(self, step: int) -> None:
        self.sieve.number = step

    @property
    def observers(self) -> list[Observer]:
        """Objects that see the gradients and the record of each step."""
        return self.engine.observers

    # Names.

    @ordinary_tensors()
    def bind(self, model: nn.Module, *, scaler: Scaler | None = None) -> None:
        """Name the parameters as the model does. `attach` calls it.

        Args:
            scaler: for a copy of a state that was told one, which a copy does not keep.

        Raises:
            SieveError: the state belongs to another model, or has numbered its parameters already;
                a parameter that is trained has sparse gradients or a dtype that is not taken.
            ValueError: a state of another model was loaded before, or copied.
        """
        if (copied := self.copied) is not None:
            require_scaler(copied, scaler)
            self.sieve.loss_scale = LossScale(scaler)
            take_up(self, copied, lambda: self._bind(model, named=not copied.is_numbered))
        else:
            self._bind(model)

    def _bind(self, model: nn.Module, *, named: bool = True) -> None:
        # A compiled module hides the DDP model in it.
        model = uncompiled(model)
        ignored: Collection[str] = ()
        inner = model
        if isinstance(model, DistributedDataParallel):
            require_all_buckets(model)
            # Not DDP's own module: it keeps the hook's state, and neither would ever be freed.
            inner, ignored = model.module, getattr(model, "parameters_to_ignore", ())
        require_prunable(inner, ignored)
        if named:
            self.sieve.bind(inner, ignored)
        if isinstance(model, DistributedDataParallel):
            self.sieve.may_be_unused = model.find_unused_parameters or model.static_graph
            self.engine.serve(model)

    @ordinary_tensors()
    def bind_weights(
        self, model: nn.Module, named: Sequence[tuple[str, Tensor]], turns: int = 1
    ) -> None:
        """As `bind`, of weights that stand for those of the model; `OuterSync` calls it.

        The state is then a part of theirs, and is saved with them.

        Args:
            turns: number of steps that show all of them, each about as many.
        """
        self.sieve.bind_weights(model, named)
        self.engine.turns = turns
        self.engine.groups.on_host = all(parameter.is_cpu for _, parameter in named)

    @property
    def residuals(self) -> Mapping[str, Tensor]:
        """Parameter name → a copy of its residual (float32, the parameter's shape)."""
        return Residuals(self.sieve.parameters.states, self.engine.finish)

    @property
    def owned_residuals(self) -> Mapping[str, Tensor]:
        """Parameter name → what this rank has pruned of the ranks' average in two-shot exchanges.

        A copy, float32, of the parameter's shape; 0 outside the piece that this rank adds up.
        """
        self.engine.finish()
        return {p.name: p.unrotated_owned() for p in self.sieve.parameters}

    # A step.

    def begin_step(self, first: Bucket) -> None:
        """Begin a step with its first bucket; raises as `Engine.begin_step`."""
        require_taken_up(self)
        self.engine.begin_step(first)

    def end_step(self) -> None:
        """Wait for the exchanges of a step, and record it; raises as `Engine.end_step`."""
        self.last = self.engine.end_step()
        self.totals.add(self.last)
        if self.on_step is not None:
            self.on_step(self.last)

    # Copies.

    def __getstate__(self) -> dict[str, Any]:
        """A copy has the options and what is kept of the parameters, and must be bound anew.

        Raises:
            TypeError: the state is that of an `OuterSync`.
        """
        if self.sieve.stands_for_weights:
            refuse_copy("the state of an OuterSync", "save outer.state_dict() instead")
        return packed(self)

    def __setstate__(self, found: dict[str, Any]) -> None:
        unpack(self, found)

    # Checkpoints.

    def state_dict(self) -> dict[str, Any]:
        """What this rank must save to go on exactly; loads under ``weights_only=True``.

        Every rank saves its own: residuals differ from rank to rank.

        Raises:
            SieveError: the state is that of an `OuterSync`.
        """
        self._require_own_checkpoint()
        return self.save()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` saved on the same rank, after the model's own weights.

        What is refused changes nothing. A state that is not bound to its model yet compares names
        and weights when it is, or at the first step, on all ranks.

        Raises:
            ValueError: it is no such state, or damaged, naming the field; or it is of another
                model, rank, world size, step or other options.
            SieveError: the state is that of an `OuterSync`.
        """
        self._require_own_checkpoint()
        self.load(state)

    def _require_own_checkpoint(self) -> None:
        if self.sieve.stands_for_weights:
            raise SieveError(
                "this state belongs to outer weights, without which its residuals mean nothing: "
                "save and load outer.state_dict(), where outer is the OuterSync"
            )

    @ordinary_tensors()
    def save(self) -> dict[str, Any]:
        self.engine.settle()
        if self.copied is not None:
            return self.copied.saved | {"parameters": self.sieve.parameters.save()}
        rank, world_size = self.engine.groups.own_place
        kept = self.sieve.save()
        parameters = kept.pop("parameters")
        return sealed(
            {
                "version": VERSION,
                "rank": rank,
                "world_size": world_size,
                **kept,
                "note": finite_note(self.engine.reports.notes.mine),
                "parameters": parameters,
            }
        )

    @ordinary_tensors()
    def load(self, state: Mapping[str, Any], weights: Mapping[str, int] | None = None) -> None:
        """As `load_state_dict`.

        Args:
            weights: checksums of the parameters as they will be; None: those that they have.
        """
        if self.copied is not None:
            raise SieveError("this SieveState is a copy: bind it before a state is loaded")
        # What is refused leaves an unfinished step as it is.
        found = require_sound(state)
        require_own_place(found["rank"], found["world_size"], *self.engine.groups.own_place)
        self.sieve.require_fit(found, weights)
        self.engine.settle()
        self.sieve.load(found)
        self.engine.reports.notes.mine = list(found["note"])
        self.engine.loaded_place = found["rank"], found["world_size"]
