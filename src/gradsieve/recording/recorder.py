"""The recorder writes the records of a run, with histograms of what is trained and exchanged."""

import atexit
import json
import os
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, fields
from operator import index
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from gradsieve.bucket.shards import local
from gradsieve.parameters.parameter import ParameterState
from gradsieve.recording.arguments import chooser, directory_of, group_of, require_number
from gradsieve.recording.counting import counted, histogram_of, sampled
from gradsieve.recording.files import HISTOGRAMS, RECORDS, RecordFile
from gradsieve.recording.histogram import Histogram
from gradsieve.recording.mailbox import Mailbox
from gradsieve.recording.sample import (
    Histograms,
    Sample,
    accumulates_in_place,
    as_json,
    kept_residual,
    packed,
    unpacked,
)
from gradsieve.recording.tensorboard import TensorBoard, tensorboard_or_none
from gradsieve.saved.copies import refuse_copy
from gradsieve.saved.parameter_names import plain_names
from gradsieve.state import SieveState
from gradsieve.telemetry.record import StepRecord

PATIENCE_SECONDS = 5.0
"""Seconds that `close` waits for histograms of other ranks that are still under way."""
READ_A_STEP = 4
"""Largest number of messages of other ranks that are read in a step. Each takes some
milliseconds."""


class Recorder:
    """Writes what happens in each step to a directory, for `gradsieve report` and TensorBoard.

    Make one on every rank, after `attach`. The first rank of the group writes the files; all ranks
    contribute to the histograms. If something cannot be written, it is lost: a warning says so
    once, and training goes on.

    There are four kinds of histograms, each by the name of the parameter in `model`:

    - weight: the weights with which the step began.
    - gradient: the gradients of each rank before pruning, without the scale of the loss.
    - accumulated: gradient + residual, which is compared with the threshold. This kind is left out
      for rotated parameters and in a hierarchical exchange, where the sum is not made element by
      element.
    - residual: the residual after the step, without the part that a two-shot exchange keeps of
      sums. Residuals of rotated parameters are coefficients.

    Args:
        state: the state that `attach` has returned. None if the model trains without the sieve;
            gradients are then the averages that `log` finds.
        model: the DDP model, or that of an `Averager` or `OuterSync`.
        out: the directory. A run that is resumed appends to its files. If FSDP has cut the model,
            each group of ranks that hold the same shards records these: that of rank 0 in `out`,
            and another in ``out/rank<its first rank>``.
        histograms_every: the number of steps from one with histograms to the next; 0 makes none.
            Or a function that takes the number of a step and returns whether it has histograms.
        sample: the largest number of elements that are counted in the whole model, beside some
            thousands of each parameter. None counts all elements.
        tensorboard: whether to write event files as well. None does so if the package is
            installed.
        first_step: the number of the next step, if there is no `state` that counts steps.
        about: anything that JSON can hold, such as a title. It is kept with the records.

    Raises:
        TypeError: an option has the wrong type, or JSON cannot hold `about`.
        ValueError: a number is out of range, or there is no process group.
        ImportError: `tensorboard` is True and the package cannot be imported.

    Example, in a process whose default process group is initialized:

        >>> import torch
        >>> import gradsieve as gs
        >>> from torch.nn.parallel import DistributedDataParallel as DDP
        >>> model = DDP(torch.nn.Linear(64, 64))
        >>> sieve = gs.attach(model, threshold=gs.Sigma(2), min_numel=64)
        >>> recorder = gs.Recorder(sieve, model, "run", histograms_every=2, tensorboard=False)
        >>> for step in range(3):
        ...     loss = model(torch.randn(8, 64)).square().mean()
        ...     loss.backward()
        ...     recorder.log(loss=loss)
        >>> recorder.close()
        >>> import json
        >>> from pathlib import Path
        >>> lines = Path("run/records.jsonl").read_text().splitlines()
        >>> records = [json.loads(line) for line in lines[1:]]  # the first line is a heading
        >>> [record["step"] for record in records], "loss" in records[0]
        ([0, 1, 2], True)
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
        # Keep the inner module only. DDP keeps the state of its hook, which keeps this recorder: a
        # reference back to DDP would be a cycle, and none would be freed.
        inner = model.module if isinstance(model, DistributedDataParallel) else model
        trained = {name: p for name, p in inner.named_parameters() if p.requires_grad}
        self._parameters = dict(zip(plain_names([*trained]), trained.values(), strict=True))
        # These are the names that a state gives to parameters if it was not bound.
        self._numbered = {str(n): p for n, p in enumerate(self._parameters.values())}
        elements = sum(local(p).numel() for p in self._parameters.values())
        self._every = 1 if sample is None else -(-elements // sample)
        self._mailbox = Mailbox(group_of(model, state))
        self._pending: dict[str, Any] = {}
        """The record of the last step; before the first step, what was already logged."""
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
            directory = directory_of(out, model, self._mailbox.ranks[0])
            heading = {
                "started": time.time(),
                "cores": os.cpu_count(),
                "torch": torch.__version__,
                "ranks": len(self._mailbox.ranks),
                "parameters": {n: local(p).numel() for n, p in self._parameters.items()},
                "about": dict(about or {}),
            }
            self._records = RecordFile(directory / RECORDS, heading)
            self._histograms = RecordFile(directory / HISTOGRAMS, heading)
            self._board = tensorboard_or_none(directory, tensorboard)
        # Compile the kernels now rather than within a step.
        histogram_of(torch.zeros(1, dtype=torch.float32, device="cpu"))
        if state is None:
            self._count_weights(self._step)
        else:
            state.observers.append(self)
        atexit.register(close_if_alive, weakref.ref(self))

    # Calls of the state.

    def see_gradients(
        self, step: int, parameters: Sequence[ParameterState], gradients: Sequence[Tensor]
    ) -> None:
        if self._pending.get("step", step) < step:
            self._flush()
        if not self._counts(step):
            return
        # A state that was not bound knows no parameters in its first step, hence `strict=False`.
        for parameter, gradient in zip(parameters, gradients, strict=False):
            sample, numel = sampled(gradient, self._every) / self._loss_scale, gradient.numel()
            self._add_histogram("gradient", parameter.name, counted(sample, numel))
            if accumulates_in_place(parameter, self._state):
                accumulated = sample + sampled(parameter.flat_residual(), self._every)
                self._add_histogram("accumulated", parameter.name, counted(accumulated, numel))
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

    # Calls of the training loop.

    def log(self, **metrics: float) -> None:
        """Add numbers (loss, accuracy, learning rate) to the record of the last step.

        A tensor of one element is read as a number.

        If the model trains without the sieve, each call is a step: call it once in each step,
        before the gradients are cleared.

        Raises:
            TypeError: a value is no number.
            ValueError: the record has a field of its own with that name.
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
        """Write what is left, after waiting a few seconds for the histograms of other ranks."""
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
        """Raise TypeError, because two recorders would write the same files."""
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
            self._add_histogram(what, name, histogram_of(local(tensor), self._every))

    def _add_histogram(self, what: str, name: str, histogram: Histogram) -> None:
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
                # Look at another rank in the next step.
                sample.missing.append(sample.missing.pop(0))
            else:
                sample.add(rank, unpacked(message))
        if not sample.missing:
            self._write_sample()

    def _write_sample(self) -> None:
        """Write the sample with the ranks that have sent their histograms so far."""
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


def close_if_alive(recorder: "weakref.ref[Recorder]") -> None:
    alive = recorder()
    if alive is not None:
        alive.close()
