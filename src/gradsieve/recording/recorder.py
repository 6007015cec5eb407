"""Records of a training run, with histograms of what is trained and exchanged."""

import atexit
import json
import os
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, fields
from numbers import Real
from operator import index
from pathlib import Path
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from gradsieve.parameters.parameter import ParameterState
from gradsieve.recording.counting import counted, histogram_of, sampled
from gradsieve.recording.files import HISTOGRAMS, RECORDS, RecordFile
from gradsieve.recording.histogram import Histogram
from gradsieve.recording.mailbox import Mailbox
from gradsieve.recording.sample import Histograms, Sample, as_json, packed, unpacked
from gradsieve.recording.tensorboard import TensorBoard, tensorboard_or_none
from gradsieve.saved.copies import refuse_copy
from gradsieve.saved.names import plain_names
from gradsieve.state import SieveState
from gradsieve.telemetry.record import StepRecord

PATIENCE_SECONDS = 5.0
"""How long `close` waits for histograms of other ranks that are still on their way."""
READ_A_STEP = 4
"""The most messages of other ranks that are read in a step; each takes some milliseconds."""


class Recorder:
    """Write what happens in each step to a directory, for `gradsieve report` and TensorBoard.

    Make one on every rank, after `attach`: the group's first rank writes, all contribute to the
    histograms. Parameters are named as `model` names them. Weights are those that a step began
    with; gradients are a rank's own before pruning, in the units in which they are exchanged;
    accumulated is gradient + residual, what the threshold is compared with; residuals are what the
    step has left, without what a two-shot exchange keeps of sums. Where bases rotate, residuals are
    coefficients; there, and in a hierarchical exchange, nothing is accumulated in the gradient's
    own place, and that kind is left out.

    What cannot be written is lost: a warning says so once, and training goes on.

    Args:
        state: what `attach` gave. None where the model trains without the sieve: gradients are
            then those that `log` finds, the average of the ranks.
        model: the DDP model.
        out: the directory; a run that goes on appends to it.
        histograms_every: the number of steps from one with histograms to the next; 0 makes none. A
            function takes the number of a step and returns whether it has histograms.
        sample: the most elements that are counted over the whole model, beside some thousands of
            each parameter; None counts all.
        tensorboard: write event files to the directory as well; None does so if the package is
            installed.
        first_step: the number of the next step, where there is no `state` that counts steps.
        about: kept with the records, as JSON; a title or settings, for example.

    Raises:
        TypeError: an option is of another type, or JSON cannot say what is in `about`.
        ValueError: a number is out of range.
        ImportError: `tensorboard` is True, and the package cannot be imported.
    """

    def __init__(
        self,
        state: SieveState | None,
        model: nn.Module,
        out: str | Path,
        *,
        histograms_every: int | Callable[[int], bool] = 50,
        sample: int | None = 2**18,
        tensorboard: bool | None = None,
        first_step: int = 0,
        about: Mapping[str, object] | None = None,
    ) -> None:
        self._wants_histograms = chooser(histograms_every)
        if sample is not None and index(sample) < 1:
            raise ValueError(f"sample must be 1 or more, or None, got {sample}")
        json.dumps(dict(about or {}))
        self._state = state
        # Not DDP's module: it keeps the hook's state, which keeps this, and none would be freed.
        inner = model.module if isinstance(model, DistributedDataParallel) else model
        trained = {name: p for name, p in inner.named_parameters() if p.requires_grad}
        self._parameters = dict(zip(plain_names([*trained]), trained.values(), strict=True))
        # As a state that was not bound names them.
        self._numbered = {str(n): p for n, p in enumerate(self._parameters.values())}
        elements = sum(p.numel() for p in self._parameters.values())
        self._every = 1 if sample is None else -(-elements // sample)
        self._mailbox = Mailbox(group_of(model))
        self._pending: dict[str, Any] = {}
        """The record of the last step; before the first step what was logged already."""
        self._step = index(first_step)
        self._counting: tuple[int, bool] = (-1, False)
        """A step, and whether it has histograms."""
        self._counted: Histograms = {}
        self._sample: Sample | None = None
        """The sample that still lacks the histograms of other ranks."""
        self._records: RecordFile | None = None
        self._histograms: RecordFile | None = None
        self._board: TensorBoard | None = None
        if self._mailbox.is_first:
            directory = Path(out)
            heading = {
                "started": time.time(),
                "cores": os.cpu_count(),
                "torch": torch.__version__,
                "ranks": len(self._mailbox.ranks),
                "parameters": {name: p.numel() for name, p in self._parameters.items()},
                "about": dict(about or {}),
            }
            self._records = RecordFile(directory / RECORDS, heading)
            self._histograms = RecordFile(directory / HISTOGRAMS, heading)
            self._board = tensorboard_or_none(directory, tensorboard)
        # Compiles what else would be compiled within a step.
        histogram_of(torch.zeros(1, dtype=torch.float32, device="cpu"))
        if state is None:
            self._count_weights(self._step)
        else:
            state.observers.append(self)
        atexit.register(close_if_alive, weakref.ref(self))

    # What the state tells.

    def see_gradients(
        self, step: int, parameters: Sequence[ParameterState], gradients: Sequence[Tensor]
    ) -> None:
        if self._pending.get("step", step) < step:
            self._flush()
        if not self._counts(step):
            return
        # A state that was not bound knows no parameters in its first step.
        for parameter, gradient in zip(parameters, gradients, strict=False):
            sample, numel = sampled(gradient, self._every) / self._loss_scale, gradient.numel()
            self._keep("gradient", parameter.name, counted(sample, numel))
            if accumulates_in_place(parameter, self._state):
                accumulated = sample + sampled(parameter.flat_residual(), self._every)
                self._keep("accumulated", parameter.name, counted(accumulated, numel))
            if self._mailbox.is_first:
                numbered = self._numbered.get(parameter.name)
                self._count(
                    "weight", parameter.name, self._parameters.get(parameter.name, numbered)
                )

    def end_step(self, record: StepRecord) -> None:
        self._step = record.step
        if self._mailbox.is_first:
            self._begin_record(asdict(record), record.scalars())
        if self._state is not None and self._counts(record.step):
            for parameter in self._state.sieve.parameters:
                if not parameter.whole:
                    self._count("residual", parameter.name, kept_residual(parameter))
            self._share(record.step)
        self._collect()

    @property
    def _loss_scale(self) -> float:
        return 1.0 if self._state is None else self._state.sieve.step.loss_scale

    # What the training loop tells.

    def log(self, **metrics: float) -> None:
        """Add numbers (loss, accuracy, learning rate) to the record of the last step.

        Tensors of one element are read as numbers.

        Where the model trains without the sieve, call it once a step, before the gradients are
        cleared: that is what a step is.

        Raises:
            TypeError: a value is no number.
            ValueError: a number of that name is the record's own.
        """
        own = OWN_FIELDS if self._state is not None else {"step"}
        if taken := sorted(own & metrics.keys()):
            raise ValueError(f"log: {', '.join(taken)} would replace what the record says itself")
        for name, value in metrics.items():
            require_number(name, value)
        if self._state is None:
            self._end_plain_step()
        if self._mailbox.is_first:
            numbers = {
                name: float(value.detach() if isinstance(value, Tensor) else value)
                for name, value in metrics.items()
            }
            self._pending |= numbers
            if self._board is not None:
                self._board.scalars(self._pending.get("step", self._step), numbers)

    def close(self) -> None:
        """Write what is left, after waiting some seconds for the histograms of other ranks."""
        if self._state is not None and self in self._state.observers:
            self._state.observers.remove(self)
        self._flush()
        deadline = time.monotonic() + PATIENCE_SECONDS
        while self._sample is not None and time.monotonic() < deadline:
            self._collect()
            time.sleep(0.01)
        self._write_sample()
        for file in (self._records, self._histograms, self._board):
            if file is not None:
                file.close()

    def __getstate__(self) -> NoReturn:
        """Raise TypeError: two recorders would write the same files."""
        refuse_copy("a Recorder", "make a new one with another directory")

    # Records.

    def _begin_record(self, line: dict[str, Any], scalars: Mapping[str, float]) -> None:
        early = {} if "step" in self._pending else self._pending
        self._flush()
        self._pending = early | line
        if self._board is not None:
            self._board.scalars(line["step"], scalars)

    def _flush(self) -> None:
        if self._records is not None and "step" in self._pending:
            self._records.write(self._pending)
            self._pending = {}

    def _end_plain_step(self) -> None:
        step = self._step
        if self._mailbox.is_first:
            self._begin_record({"step": step}, {})
        if self._counts(step):
            for name, parameter in self._parameters.items():
                self._count("gradient", name, parameter.grad)
            self._share(step)
        self._collect()
        self._step += 1
        self._count_weights(self._step)

    # Histograms.

    def _counts(self, step: int) -> bool:
        if self._counting[0] != step:
            self._counting = step, bool(self._wants_histograms(step))
        return self._counting[1]

    def _count_weights(self, step: int) -> None:
        if self._mailbox.is_first and self._counts(step):
            for name, parameter in self._parameters.items():
                self._count("weight", name, parameter)

    def _count(self, what: str, name: str, tensor: Tensor | None) -> None:
        if tensor is not None:
            self._keep(what, name, histogram_of(tensor, self._every))

    def _keep(self, what: str, name: str, histogram: Histogram) -> None:
        self._counted.setdefault(what, {})[name] = histogram

    def _share(self, step: int) -> None:
        mine, self._counted = self._counted, {}
        if self._mailbox.is_first:
            self._write_sample()
            self._sample = Sample(step, mine, self._mailbox.ranks[1:])
        else:
            self._mailbox.send(str(step), packed(mine))

    def _collect(self) -> None:
        """Read the histograms of some of the ranks that have sent theirs."""
        sample = self._sample
        if sample is None:
            return
        for rank in sample.missing[:READ_A_STEP]:
            message = self._mailbox.collect(str(sample.step), rank)
            if message is None:
                # Another one's turn in the next step.
                sample.missing.append(sample.missing.pop(0))
            else:
                sample.add(rank, unpacked(message))
        if not sample.missing:
            self._write_sample()

    def _write_sample(self) -> None:
        """Write the sample, with the ranks that were heard."""
        sample, self._sample = self._sample, None
        if sample is None:
            return
        if self._histograms is not None:
            heard = len(self._mailbox.ranks) - len(sample.missing)
            found = as_json(sample.histograms)
            self._histograms.write({"step": sample.step, "ranks": heard, "histograms": found})
        if self._board is not None:
            tagged = {
                f"{what}/{name}": found
                for what, by_name in sample.histograms.items()
                for name, found in by_name.items()
            }
            self._board.histograms(sample.step, tagged)


OWN_FIELDS = frozenset(field.name for field in fields(StepRecord))


def require_number(name: str, value: object) -> None:
    """Raise TypeError unless `value` is one number, without waiting for a device.

    Ranks that write nothing check it as well.
    """
    is_one = value.numel() == 1 if isinstance(value, Tensor) else isinstance(value, Real)
    if not is_one:
        raise TypeError(f"log: {name} must be a number, got {value!r}")


def close_if_alive(recorder: "weakref.ref[Recorder]") -> None:
    alive = recorder()
    if alive is not None:
        alive.close()


def chooser(every: int | Callable[[int], bool]) -> Callable[[int], bool]:
    if callable(every):
        return every
    steps = index(every)
    if steps < 0:
        raise ValueError(f"histograms_every must be 0 or more, got {steps}")
    return lambda step: steps > 0 and step % steps == 0


def accumulates_in_place(parameter: ParameterState, state: SieveState | None) -> bool:
    """Whether the sum of a rank's gradient and residual is what it prunes."""
    of_node = state is not None and state.engine.topology.averages_on_node
    return not (parameter.whole or parameter.rotation is not None or of_node)


def kept_residual(parameter: ParameterState) -> Tensor:
    """Return the residual that this rank keeps: in a node each rank keeps a piece."""
    residual = parameter.flat_residual()
    if parameter.dealt is None:
        return residual
    return residual[parameter.dealt.start : parameter.dealt.stop]


def group_of(model: nn.Module) -> dist.ProcessGroup:
    if isinstance(model, DistributedDataParallel):
        return model.process_group
    group = dist.group.WORLD
    if group is None:
        raise ValueError("a Recorder wants a DDP model, or an initialized default group")
    return group
