"""`Averager`: a sieve for training loops that average gradients by a call, FSDP2 among them."""

import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn

import torch
import torch.distributed as dist
from torch import Tensor, nn

from gradsieve.averager.given import Given, Parameters
from gradsieve.averager.outgoing import Outgoing
from gradsieve.bucket.flat import FlatBucket
from gradsieve.bucket.shards import is_offloaded, places_of, require_replicas
from gradsieve.config import Options, SieveConfig, config_from
from gradsieve.control.loss_scale import Scaler
from gradsieve.errors import SieveError
from gradsieve.exchange.texts import device_of
from gradsieve.runtime.modes import ordinary_tensors
from gradsieve.saved.copies import refuse_copy
from gradsieve.state import SieveState
from gradsieve.telemetry.record import StepRecord

if TYPE_CHECKING:
    from typing_extensions import Unpack


class Averager(SieveState):
    """Prunes gradients by thresholds and averages them over ranks, in any training loop.

    Use it where no DDP calls a hook: with FSDP2 between nodes, with pipeline stages, or in a loop
    that averages by hand. It is a `SieveState`: records, residuals, checkpoints and `Recorder` work
    as with `attach`.

    With FSDP2 (``fully_shard`` over one dimension of a device mesh), give it the group of the other
    dimension: the ranks that hold the same shard. Each rank then prunes and sends the gradients of
    its own shard.

    Args:
        parameters: the parameters, or pairs of name and parameter, in the same order on all ranks
            of the group. They may be DTensors, which are exchanged by their local shard. Frozen
            ones (``requires_grad=False``) are left out.
        config: the options; None takes the defaults of `SieveConfig`.
        process_group: the ranks that exchange; None takes the default group.
        overlap: whether a bucket is sent during the backward pass, as soon as its gradients are
            there. The averages have the same bits without. `Budget` ("auto") sends more with it,
            because the backward pass then hides the exchange.
        scaler: the object that scales the loss, as in `SieveState`. Call `average_` before
            ``scaler.unscale_``.
        options: fields of `SieveConfig` by name. They replace those of `config`.

    Raises:
        TypeError: `parameters` are no parameters, or an option does not exist or has the wrong
            type.
        ValueError: no parameter is trained, one comes twice, an option has a value that is not
            allowed, or this rank is not in the group.
        SieveError: ranks of the group hold different shards of a parameter, FSDP averages over them
            already, or a trained parameter has an unsupported dtype.

    Example, in a process whose default process group is initialized:

        >>> import torch
        >>> import gradsieve as gs
        >>> model = torch.nn.Linear(64, 64)
        >>> sieve = gs.Averager(model.named_parameters(), threshold=gs.Sigma(2), min_numel=64)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> for step in range(3):
        ...     model(torch.randn(8, 64)).square().mean().backward()
        ...     record = sieve.average_()
        ...     optimizer.step()
        ...     optimizer.zero_grad()
        >>> record.step, sieve.totals.steps
        (2, 3)
    """

    idle_notice: ClassVar[str] = (
        "average_() was never called, so every rank trains by itself. Call "
        "sieve.average_() between loss.backward() and optimizer.step()"
    )

    @ordinary_tensors()
    def __init__(
        self,
        parameters: Parameters,
        config: SieveConfig | None = None,
        *,
        process_group: dist.ProcessGroup | None = None,
        overlap: bool = False,
        scaler: Scaler | None = None,
        **options: "Unpack[Options]",
    ) -> None:
        self._given = given = Given(parameters)
        config = config_from(type(self), config, options)
        super().__init__(config, scaler=scaler, process_group=process_group)
        group = self.engine.groups.known_group()
        require_replicas(given.named, dist.get_process_group_ranks(group))
        self.engine.groups.on_host = all(shard.is_cpu for shard in given.held)
        held = list(zip(given.names, given.held, strict=True))
        # No DDP has copied the weights of rank 0 to all ranks.
        self.sieve.parameters.compared = frozenset(
            name for name, parameter in given.named if isinstance(parameter, nn.Parameter)
        )
        self.sieve.bind_tensors(held, shards=places_of(parameter for _, parameter in given.named))
        self._outgoing = Outgoing(given.held, self.sieve.parameters)
        self._used = torch.empty(len(given.names), dtype=torch.float32, device=device_of(group))
        """For each parameter the share of the ranks that have a gradient of it."""
        self._overlaps = overlap
        self._accumulates = self._has_accumulated = False
        if overlap:
            require_hooks(given.named)
            this = weakref.ref(self)
            for number, (_, parameter) in enumerate(given.trained):
                # torch gives no types to this function.
                register: Any = parameter.register_post_accumulate_grad_hook
                handle = register(hook_of(this, number))
                weakref.finalize(self, handle.remove)

    # A step.

    @ordinary_tensors()
    @torch.no_grad()
    def average_(self, gradients: list[Tensor | None] | None = None) -> StepRecord:
        """Replace the gradients by the average of what all ranks have sent.

        Call it after the backward pass and before gradients are unscaled or clipped, equally often
        on all ranks. A gradient that is None counts as zeros: if another rank has one, the average
        is put in its place; if no rank has one, it stays None.

        Args:
            gradients: a list with one gradient, or None, for each parameter that the Averager was
                given, in its shape; None takes ``parameter.grad``. They are overwritten.

        Returns:
            The record of the step, which is also `last`.

        Raises:
            TypeError, ValueError: `gradients` do not fit the parameters, or were given with
                ``overlap=True``.
            SieveError: on every rank, where the ranks differ, also in the weights at the first
                call, or where no rank has a gradient. Also what `attach` lists.
            ExchangeError: a rank has died or stalled. Gradients are then as they were, and
                residuals hold all that was not exchanged.
        """
        if gradients is not None and self._overlaps:
            raise ValueError(
                "with overlap=True the gradients are those of the parameters: call average_() "
                "without any"
            )
        outgoing, given = self._outgoing, self._given
        try:
            given.require_as_before()
            mine = given.gradients(gradients)
            self._require_new(mine)
            has_gradient = [float(gradient is not None) for gradient in mine]
            self._used.copy_(torch.tensor(has_gradient, dtype=torch.float32, device="cpu"))
            for number in reversed(range(len(mine))):
                if not outgoing.has_come(number):
                    outgoing.come(number, mine[number], self._send)
            self.engine.average_beside(self._used)
            # An error of an observer or of `on_step` leaves no gradient behind.
            self.end_step(deliver=lambda: self._put(mine, gradients))
        finally:
            outgoing.clear()
            self._has_accumulated = False
        assert self.last is not None
        return self.last

    def trains(self, parameter: Tensor) -> bool:
        """Return whether the gradients of a parameter are averaged here."""
        return any(parameter is own for _, own in self._given.trained)

    def save(self) -> dict[str, Any]:
        self._require_between_steps("saved")
        self._given.require_as_before()
        return super().save()

    def load(self, state: Mapping[str, Any], weights: Mapping[str, int] | None = None) -> None:
        self._require_between_steps("loaded")
        self._given.require_as_before()
        super().load(state, weights)

    def _require_between_steps(self, done: str) -> None:
        """Raise SieveError if a backward pass has begun to send gradients."""
        if self._outgoing.has_any_come:
            raise SieveError(
                f"a state cannot be {done} between a backward pass and average_, because gradients "
                "are under way: call average_ first"
            )

    def _require_new(self, mine: Sequence[Tensor | None]) -> None:
        """Raise SieveError if gradients were averaged already, as far as hooks tell."""
        is_new = self._outgoing.has_any_come or self._has_accumulated
        if self._overlaps and not is_new and any(gradient is not None for gradient in mine):
            raise SieveError(
                "no gradient was computed since average_ was called last: call it once in a step, "
                "after the backward pass"
            )

    @contextmanager
    def no_sync(self) -> Iterator[None]:
        """Return a context whose backward passes only accumulate gradients.

        With ``overlap=True`` it is needed for all backward passes of a step but the last, as with
        DDP. Without overlap it changes nothing.
        """
        before, self._accumulates = self._accumulates, True
        try:
            yield
        finally:
            self._accumulates = before

    def _send(self, bucket: FlatBucket) -> torch.futures.Future[Tensor]:
        if bucket.number == 0:
            if self._overlaps:
                # `average_` has looked otherwise.
                self._given.require_as_before()
            self.begin_step(bucket)
        return self.engine.exchange(bucket)

    def _put(self, mine: Sequence[Tensor | None], gradients: list[Tensor | None] | None) -> None:
        """Write the averages into the gradients of all parameters that a rank has used."""
        self._outgoing.wait()
        used = self._used.tolist()
        if not any(used):
            raise SieveError(
                "no parameter has a gradient on any rank: call average_ after backward and before "
                "zero_grad, and make the Averager after what replaces parameters (fully_shard, "
                "load_state_dict(assign=True))"
            )
        for number, gradient in enumerate(mine):
            if used[number]:
                target = (
                    self._given.set_gradient(number, gradients) if gradient is None else gradient
                )
                target.copy_(self._outgoing.views[number])

    @ordinary_tensors()
    def come(self, number: int) -> None:
        """Take the gradient of a parameter that a backward pass has computed.

        Raises:
            SieveError: it has come before in this step, which is then given up.
        """
        outgoing = self._outgoing
        if self._accumulates and not outgoing.has_come(number):
            self._has_accumulated = True
            return
        try:
            if outgoing.has_come(number):
                self.engine.clear_interrupted()
                raise SieveError(
                    f"parameter {self._given.names[number]} has got a second gradient before "
                    "average_, and the step is given up: call average_ after each backward pass, "
                    "accumulate under no_sync(), or leave overlap away if one backward pass "
                    "computes a gradient twice (reentrant checkpointing)"
                )
            outgoing.come(number, self._given.gradient(number), self._send)
        except BaseException:
            outgoing.clear()
            raise

    def __getstate__(self) -> NoReturn:
        """Raise TypeError, because a copy would have no parameters."""
        refuse_copy("an Averager", "save sieve.state_dict() and make a new one")


def require_hooks(named: Sequence[tuple[str, Tensor]]) -> None:
    for name, parameter in named:
        if not (parameter.requires_grad and parameter.is_leaf):
            raise ValueError(
                f"overlap=True needs parameters that a backward pass reaches, and {name} has "
                "requires_grad=False: give the parameters themselves, or leave overlap away"
            )
        if is_offloaded(parameter):
            raise ValueError(
                f"overlap=True does not work with CPU offload, and FSDP keeps {name} there: its "
                "gradient may still be on the way when the backward pass tells of it. Leave "
                "overlap away"
            )


def hook_of(this: "weakref.ref[Averager]", number: int) -> Callable[[Tensor], None]:
    """Return a hook of a parameter, which does not keep the Averager alive."""

    def hook(_: Tensor) -> None:
        averager = this()
        if averager is not None:
            averager.come(number)

    return hook
