"""Records of a training run, with histograms of what is trained and exchanged."""

import atexit
import json
import os
import time
import zlib
from base64 import b64decode, b64encode
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from gradsieve.parameters import ParameterState
from gradsieve.recording.counting import histogram_of, histogram_of_sum
from gradsieve.recording.files import HISTOGRAMS, RECORDS, RecordFile
from gradsieve.recording.histogram import Histogram, sum_of
from gradsieve.recording.mailbox import Mailbox
from gradsieve.recording.tensorboard import TensorBoard, tensorboard_or_none
from gradsieve.state import SieveState
from gradsieve.telemetry import StepRecord

Histograms = dict[str, dict[str, Histogram]]
"""By what is counted ("weight", "gradient", "accumulated", "residual") and parameter."""
PATIENCE_SECONDS = 5.0
"""At the end, for histograms of other ranks that are still on their way."""


class Recorder:
    """Writes what happens in each step to a directory, for `gradsieve report` and TensorBoard.

    Make one on every rank, after `attach`: the group's first rank writes, all contribute to the
    histograms. Parameters are named as `model` names them. Weights are those that a step began
    with; gradients are a rank's own before pruning, in the units in which they are exchanged;
    accumulated is gradient + residual, what the threshold is compared with; residuals are what the
    step has left. Where bases rotate, residuals and accumulated gradients are coefficients in them.

    What cannot be written is told once on standard error and lost; training goes on.

    Args:
        state: what `attach` gave. None where the model trains without the sieve: gradients are
            then those that `log` finds, the average of the ranks.
        model: the DDP model.
        out: the directory; records are appended to those that lie there.
        histograms_every: steps between two with histograms; 0: none. A function says of a step
            whether it has any.
        sample: elements that a histogram of the whole model looks at, at most (but some thousands
            of each parameter); None: all.
        tensorboard: write event files to the directory as well; None: where the package is
            installed.
        about: what to keep with the records, as JSON: a title, settings.

    Raises:
        TypeError: JSON cannot say what is in `about`.
        ValueError: a number is out of range.
        ImportError: `tensorboard` is True, and the package is missing.
    """

    def __init__(
        self,
        state: SieveState | None,
        model: nn.Module,
        out: str | Path,
        *,
        histograms_every: int | Callable[[int], bool] = 50,
        sample: int | None = 2**20,
        tensorboard: bool | None = None,
        about: Mapping[str, object] | None = None,
    ) -> None:
        self._wants_histograms = chooser(histograms_every)
        if sample is not None and sample < 1:
            raise ValueError(f"sample must be 1 or more, or None, got {sample}")
        json.dumps(dict(about or {}))
        self._state = state
        # Not DDP's module: it keeps the hook's state, which keeps this, and none would be freed.
        inner = model.module if isinstance(model, DistributedDataParallel) else model
        self._parameters = {name: p for name, p in inner.named_parameters() if p.requires_grad}
        elements = sum(p.numel() for p in self._parameters.values())
        self._every = 1 if sample is None else -(-elements // sample)
        self._mailbox = Mailbox(group_of(model))
        self._pending: dict[str, Any] = {}
        """Of the last step; before the first one what was logged already."""
        self._counted: Histograms = {}
        self._waiting: dict[int, Histograms] = {}
        """Steps whose histograms lack those of other ranks."""
        self._step = 0
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
        if state is not None:
            state.observers.append(self)
        atexit.register(self.close)

    # What the state tells.

    def see_gradients(
        self, step: int, parameters: Sequence[ParameterState], gradients: Sequence[Tensor]
    ) -> None:
        if not self._wants_histograms(step):
            return
        for parameter, gradient in zip(parameters, gradients, strict=True):
            self._count("gradient", parameter.name, gradient)
            if not parameter.whole and parameter.rotation is None:
                found = histogram_of_sum(gradient, parameter.flat_residual(), self._every)
                self._counted.setdefault("accumulated", {})[parameter.name] = found
            if self._mailbox.is_first:
                self._count("weight", parameter.name, self._parameters.get(parameter.name))

    def end_step(self, record: StepRecord) -> None:
        self._step = record.step
        self._begin_record(asdict(record), record.scalars())
        if self._state is not None and self._wants_histograms(record.step):
            for parameter in self._state.registry:
                if not parameter.whole:
                    self._count("residual", parameter.name, parameter.flat_residual())
            self._share(record.step)
        self._collect()

    # What the training loop tells.

    def log(self, **metrics: float) -> None:
        """Add numbers (loss, accuracy, learning rate) to the record of the last step.

        Tensors of one element are read as numbers.

        Where the model trains without the sieve, call it once a step, before the gradients are
        cleared: that is what a step is.
        """
        if self._state is None:
            self._begin_record({"step": self._step}, {})
            if self._wants_histograms(self._step):
                for name, parameter in self._parameters.items():
                    self._count("gradient", name, parameter.grad)
                    if self._mailbox.is_first:
                        self._count("weight", name, parameter)
                self._share(self._step)
            self._collect()
        numbers = {name: float(value) for name, value in metrics.items()}
        self._pending |= numbers
        if self._board is not None:
            self._board.scalars(self._step, numbers)
        if self._state is None:
            self._step += 1

    def close(self) -> None:
        """Write what is left; waits some seconds for the histograms of other ranks."""
        atexit.unregister(self.close)
        if self._state is not None and self in self._state.observers:
            self._state.observers.remove(self)
        self._flush()
        deadline = time.monotonic() + PATIENCE_SECONDS
        while self._waiting and time.monotonic() < deadline:
            self._collect()
            if self._waiting:
                time.sleep(0.02)
        self._collect(whatever_is_there=True)
        for file in (self._records, self._histograms, self._board):
            if file is not None:
                file.close()

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

    # Histograms.

    def _count(self, what: str, name: str, tensor: Tensor | None) -> None:
        if tensor is not None:
            self._counted.setdefault(what, {})[name] = histogram_of(tensor, self._every)

    def _share(self, step: int) -> None:
        counted, self._counted = self._counted, {}
        if self._mailbox.is_first:
            self._waiting[step] = counted
        else:
            self._mailbox.send(str(step), packed(counted))

    def _collect(self, *, whatever_is_there: bool = False) -> None:
        newest = max(self._waiting, default=0)
        for step in sorted(self._waiting):
            late = whatever_is_there or step < newest
            arrived = self._mailbox.collect(str(step), whatever_is_there=late)
            if arrived is not None:
                mine = self._waiting.pop(step)
                self._write(step, [mine, *map(unpacked, arrived)])

    def _write(self, step: int, of_ranks: Sequence[Histograms]) -> None:
        merged = {
            what: {
                name: sum_of(other[what][name] for other in of_ranks if name in other.get(what, {}))
                for name in by_name
            }
            for what, by_name in of_ranks[0].items()
        }
        if self._histograms is not None:
            self._histograms.write(
                {"step": step, "ranks": len(of_ranks), "histograms": as_json(merged)}
            )
        if self._board is not None:
            for what, by_name in merged.items():
                self._board.histograms(
                    step, {f"{what}/{name}": found for name, found in by_name.items()}
                )


def chooser(every: int | Callable[[int], bool]) -> Callable[[int], bool]:
    if not isinstance(every, int):
        return every
    if every < 0:
        raise ValueError(f"histograms_every must be 0 or more, got {every}")
    return lambda step: every > 0 and step % every == 0


def group_of(model: nn.Module) -> dist.ProcessGroup:
    if isinstance(model, DistributedDataParallel):
        return model.process_group
    group = dist.group.WORLD
    if group is None:
        raise ValueError("a Recorder wants a DDP model, or an initialized default group")
    return group


def as_json(histograms: Histograms) -> dict[str, dict[str, Any]]:
    return {
        what: {name: found.as_json() for name, found in by_name.items()}
        for what, by_name in histograms.items()
    }


def from_json(read: Mapping[str, Mapping[str, Any]]) -> Histograms:
    """Raises KeyError, TypeError or ValueError where `read` is none."""
    return {
        what: {name: Histogram.from_json(found) for name, found in by_name.items()}
        for what, by_name in read.items()
    }


def packed(histograms: Histograms) -> str:
    return b64encode(zlib.compress(json.dumps(as_json(histograms)).encode(), 1)).decode()


def unpacked(message: str) -> Histograms:
    return from_json(json.loads(zlib.decompress(b64decode(message))))
