"""The state behind the hook: the object through which users see and save a sieve."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from operator import index
from typing import TYPE_CHECKING, Any, ClassVar

import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from gradsieve.bucket.bucket import Bucket
from gradsieve.bucket.observer import Observer
from gradsieve.bucket.rank_sieve import RankSieve
from gradsieve.bucket.requirements import require_all_buckets, require_prunable, require_torch
from gradsieve.config import Options, SieveConfig, config_from, require_count
from gradsieve.control.loss_scale import LossScale, Scaler
from gradsieve.engine import Engine
from gradsieve.errors import SieveError
from gradsieve.exchange.topology_names import Exchange
from gradsieve.gathering import Gathers
from gradsieve.parameters.residuals import Residuals
from gradsieve.runtime.modes import ordinary_tensors
from gradsieve.runtime.torch_private import uncompiled
from gradsieve.saved.copies import Copied, refuse_copy, refuse_unbound, require_scaler
from gradsieve.saved.seal import sealed
from gradsieve.saved.sieve import (
    VERSION,
    finite_note,
    lines_of,
    require_own_place,
    require_own_shards,
    require_sound,
)
from gradsieve.telemetry.idle import watch
from gradsieve.telemetry.record import StepRecord, Totals

if TYPE_CHECKING:
    from typing_extensions import Unpack


class SieveState(Gathers):
    """The sieve of one model on one rank: its records, residuals and checkpoints.

    `attach` makes and registers one. Make it yourself only for a tool that takes a state and a
    hook, as in the example.

    Args:
        config: the options; None takes the defaults of `SieveConfig`.
        scaler: the object that scales the loss, such as a ``torch.amp.GradScaler``. Residuals and
            thresholds are then in units of the unscaled gradients, and stay correct when the scale
            changes.
        process_group: the ranks that exchange; None takes the default group.
        options: fields of `SieveConfig` by name. They replace those of `config`.

    Raises:
        TypeError: an option does not exist or has the wrong type, or `scaler` has no
            ``get_scale()``.
        ValueError: an option has a value that is not allowed.
        SieveError: torch is older than 2.6, or ``NUMBA_DISABLE_JIT`` is set.

    Example, in a process whose default process group is initialized:

        >>> import torch
        >>> import gradsieve as gs
        >>> from torch.nn.parallel import DistributedDataParallel as DDP
        >>> model = DDP(torch.nn.Linear(64, 64))
        >>> sieve = gs.SieveState(threshold=gs.Fixed(0.5), exchange="gather", min_numel=64)
        >>> sieve.bind(model)
        >>> model.register_comm_hook(sieve, gs.sieve_hook)
        >>> for step in range(2):
        ...     model(torch.randn(8, 64)).square().mean().backward()
        >>> sorted(sieve.residuals)
        ['bias', 'weight']
        >>> sieve.residuals["weight"].shape, sieve.residuals["weight"].dtype
        (torch.Size([64, 64]), torch.float32)
        >>> checkpoint = sieve.state_dict()  # every rank saves its own
        >>> checkpoint["rank"], checkpoint["step"]
        (0, 2)
    """

    idle_notice: ClassVar[str] = (
        "no gradients have reached the sieve: the model trains without it. Train the DDP model "
        "that was given to gs.attach, not a module inside it. A framework may have ignored the "
        "hook: Lightning registers ddp_comm_hook on CUDA only, and "
        "gradsieve.integrations.lightning.SieveCallback works on every device"
    )
    """What is said where an optimizer steps and no step of the sieve begins."""

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
        """The record of the last step; None before the first."""
        self.totals = Totals()
        """Sums over all steps since the state was made."""
        self.on_step: Callable[[StepRecord], None] | None = None
        """A function that is called with each record."""
        # Internal.
        self.sieve = RankSieve(config, scaler)
        self.engine = Engine(self.sieve, process_group)
        self.copied: Copied | None = None
        """The content of a copied state, until that is bound."""
        watch.begin(self)

    @property
    def config(self) -> SieveConfig:
        """The options. `exchange` is None where it is the default; see `SieveState.exchange`."""
        return self.sieve.config

    @property
    def exchange(self) -> Exchange:
        """The topology, or "auto". It may be set between steps, to the same on all ranks."""
        return self.sieve.config.topology_name

    @exchange.setter
    def exchange(self, exchange: Exchange) -> None:
        self.sieve.config = replace(self.sieve.config, exchange=exchange)

    @property
    def step(self) -> int:
        """The number of the next step. It may be set between steps, to the same on all ranks."""
        return self.sieve.step_number

    @step.setter
    def step(self, step: int) -> None:
        require_count("step", step)
        self.sieve.step_number = index(step)

    @property
    def observers(self) -> list[Observer]:
        """Objects that see the gradients and the record of each step."""
        return self.engine.observers

    # Names.

    @ordinary_tensors()
    def bind(self, model: nn.Module, *, scaler: Scaler | None = None) -> None:
        """Take the names of the parameters from the model. `attach` calls it.

        Args:
            scaler: for a copy, which does not keep the scaler of its original.

        Raises:
            SieveError: the state belongs to another model or has already numbered its parameters,
                or a trained parameter has sparse gradients or an unsupported dtype.
            ValueError: the state was loaded or copied from that of another model.
        """
        if (copied := self.copied) is not None:
            require_scaler(copied, scaler)
            self.sieve.loss_scale = LossScale(scaler)
            self._take_up(copied, model)
        else:
            self._bind(model)

    def _bind(self, model: nn.Module, *, named: bool = True) -> None:
        # A compiled module hides the DDP model inside it.
        model = uncompiled(model)
        ignored: Collection[str] = ()
        inner = model
        if isinstance(model, DistributedDataParallel):
            require_all_buckets(model)
            # Keep the inner module only. DDP keeps the state of its hook: a reference back to DDP
            # would be a cycle, and neither would be freed.
            inner, ignored = model.module, getattr(model, "parameters_to_ignore", ())
        require_prunable(inner, ignored)
        if named:
            self.sieve.bind(inner, ignored)
        if isinstance(model, DistributedDataParallel):
            self.sieve.may_be_unused = model.find_unused_parameters or model.static_graph
            self.engine.serve(model)

    @ordinary_tensors()
    def bind_weights(
        self, model: nn.Module, named: Sequence[tuple[str, Tensor]], fragments: int = 1
    ) -> None:
        """Exchange weights that stand for those of the model. `OuterSync` calls it.

        The state then belongs to those weights and is saved with them.

        Args:
            named: the weights, with the names of the parameters that they stand for.
            fragments: the number of steps in which every weight is exchanged once; each step takes
                about as many of them.
        """
        watch.end(self)
        self.sieve.bind_weights(model, named)
        self.engine.fragments = fragments
        self.engine.groups.on_host = all(parameter.is_cpu for _, parameter in named)

    @property
    def residuals(self) -> Mapping[str, Tensor]:
        """A copy of the residual (float32, the shape of the parameter) for each parameter name."""
        return Residuals(self.sieve.parameters.states, self.engine.finish)

    @property
    def owned_residuals(self) -> Mapping[str, Tensor]:
        """What this rank has pruned from sums in two-shot exchanges, for each parameter name.

        Each is a copy in float32, with the shape of the parameter and in units of the average. It
        is 0 outside the piece that this rank adds up.
        """
        self.engine.finish()
        return {p.name: p.unrotated_owned() for p in self.sieve.parameters}

    # A step.

    def trains(self, parameter: Tensor) -> bool:
        """Return whether an optimizer of this parameter may need a step of the sieve first."""
        return self.sieve.parameters.may_have(parameter)

    def begin_step(self, first: Bucket) -> None:
        """Begin a step with its first bucket. Raises what `Engine.begin_step` raises."""
        if self.copied is not None:
            refuse_unbound()
        watch.end(self)
        self.engine.begin_step(first)

    def end_step(self, deliver: Callable[[], None] = lambda: None) -> None:
        """End a step, `deliver` the averages, and record it. Raises as `Engine.end_step` does."""
        self.last = self.engine.end_step()
        self.totals.add(self.last)
        deliver()
        self.engine.announce(self.last)
        if self.on_step is not None:
            self.on_step(self.last)

    # Copies.

    def __getstate__(self) -> dict[str, Any]:
        """Return the content of a copy: the options and the residuals. A copy must be bound anew.

        Raises:
            TypeError: the state belongs to an `OuterSync`.
        """
        if self.sieve.stands_for_weights:
            refuse_copy("the state of an OuterSync", "save outer.state_dict() instead")
        saved, parameters = self.save(), self.sieve.parameters
        header = {name: value for name, value in saved.items() if name != "parameters"}
        copied = self.copied or Copied(header, parameters.is_numbered)
        return {"config": self.config, "parameters": parameters, "copied": copied}

    def __setstate__(self, found: dict[str, Any]) -> None:
        # Pickle makes objects without initializing them.
        self.__init__(found["config"])  # type: ignore[misc]
        # A copy may be one of weights, such as an average of them, that no optimizer trains.
        watch.end(self)
        self.sieve.parameters, self.copied = found["parameters"], found["copied"]
        self.step = int(found["copied"].saved["step"])

    def _take_up(self, copied: Copied, model: nn.Module) -> None:
        """Bind a copy, and load its residuals into the parameters of the model.

        Raises:
            ValueError: the model is another one, or for a reason of `load_state_dict`.
        """
        saved, before = self.save(), self.sieve.parameters
        self.sieve.parameters, self.copied = before.blank(), None
        try:
            self._bind(model, named=not copied.is_numbered)
            # The original may have had no parameters yet.
            if saved["parameters"]:
                self.load(saved)
        except BaseException:
            self.sieve.parameters, self.copied = before, copied
            raise
        watch.begin(self)

    # Checkpoints.

    def state_dict(self) -> dict[str, Any]:
        """Return what this rank must save to resume exactly, as plain data and tensors.

        Every rank must save its own, because residuals differ from rank to rank. ``torch.load``
        reads it with ``weights_only=True``.

        Raises:
            SieveError: the state belongs to an `OuterSync`.
        """
        self._require_own_checkpoint()
        return self.save()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` has saved on the same rank.

        Load the weights of the model first. A saved state that is refused changes nothing. If this
        state is not bound to its model yet, names and weights are compared when it is bound, or
        at the first step, on all ranks.

        Raises:
            ValueError: `state` is no such state or is damaged (the message names the field), or it
                was saved with another model, rank, world size, step or options.
            SieveError: the state belongs to an `OuterSync`.
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
        self.engine.clear_interrupted()
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
        """Do what `load_state_dict` does, also for the state of an `OuterSync`.

        Args:
            weights: the checksums that the parameters will have; None takes those that they have.
        """
        if self.copied is not None:
            raise SieveError("this SieveState is a copy: bind it before a state is loaded")
        # Checked first: a state that is refused leaves an unfinished step as it is.
        found = require_sound(state)
        require_own_shards(found["settings"], lines_of(self.sieve.settings))
        require_own_place(found["rank"], found["world_size"], *self.engine.groups.own_place)
        self.sieve.require_fit(found, weights)
        self.engine.clear_interrupted()
        self.sieve.load(found)
        self.engine.reports.notes.mine = list(found["note"])
        self.engine.loaded_place = found["rank"], found["world_size"]
