"""Write event files for TensorBoard, through the tensorboard package itself."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from gradsieve.recording.files import tell_not_written
from gradsieve.recording.histogram import MANTISSA_BITS, Histogram, edges

OCTAVE = 2**MANTISSA_BITS


class TensorBoard:
    """Writes one event per step, since a writer that makes one per number takes too long.

    After an error it writes nothing more.

    Raises:
        ImportError: tensorboard is missing. A broken package may raise anything else.
    """

    def __init__(self, directory: Path) -> None:
        from tensorboard.compat.proto import event_pb2, summary_pb2
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._event, self._summary = event_pb2, summary_pb2
        self._open = EventFileWriter
        self._directory = directory
        self._writer: Any = None
        self._has_failed = False

    def scalars(self, step: int, numbers: Mapping[str, float]) -> None:
        self._add(
            step,
            [
                self._summary.Summary.Value(tag=tag, simple_value=number)
                for tag, number in numbers.items()
                if math.isfinite(number)
            ],
        )

    def histograms(self, step: int, found: Mapping[str, Histogram]) -> None:
        self._add(
            step,
            [
                self._summary.Summary.Value(tag=tag, histo=as_proto(self._summary, one))
                for tag, one in found.items()
            ],
        )

    def _add(self, step: int, values: list[Any]) -> None:
        if self._has_failed or not values:
            return
        try:
            if self._writer is None:
                self._writer = self._open(str(self._directory))
            summary = self._summary.Summary(value=values)
            event = self._event.Event(wall_time=time.time(), step=step, summary=summary)
            self._writer.add_event(event)
        # If TensorFlow is installed, the package writes through it and raises what that raises.
        except Exception as error:
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        self._has_failed = True
        tell_not_written(self._directory, error)

    def close(self) -> None:
        if self._writer is None or self._has_failed:
            return
        try:
            self._writer.close()
        except Exception as error:
            self._fail(error)
        self._writer = None


def tensorboard_or_none(directory: Path, wanted: bool | None) -> TensorBoard | None:
    """Return a writer. None if it is not wanted, or wanted by default but cannot be imported.

    Raises:
        ImportError: it is wanted and cannot be imported.
    """
    if wanted is False or (wanted is None and find_spec("tensorboard") is None):
        return None
    try:
        return TensorBoard(directory)
    except Exception as error:
        if not wanted:
            tell_not_written(directory / "events.out.tfevents.*", error)
            return None
        raise ImportError(
            f"Recorder(tensorboard=True) cannot import tensorboard ({error}): "
            "pip install 'gradsieve[tensorboard]'"
        ) from error


def as_proto(summary: Any, histogram: Histogram) -> Any:
    """Return one bin per octave, from the first to the last filled one.

    Finer bins would be of no use, since TensorBoard shows 30.
    """
    half = histogram.counts.size // 2
    octaves = [
        part.reshape(-1, OCTAVE).sum(axis=1)
        for part in (histogram.counts[:half], histogram.counts[half + 1 :])
    ]
    counts = np.concatenate([octaves[0], histogram.counts[half : half + 1], octaves[1]])
    limits = np.concatenate([edges()[: half + 1 : OCTAVE], edges()[half + 1 :: OCTAVE]])
    filled = np.flatnonzero(counts)
    if not filled.size:
        return summary.HistogramProto()
    first, last = int(filled[0]), int(filled[-1])
    return summary.HistogramProto(
        min=limits[first],
        max=limits[last + 1],
        num=histogram.counted,
        sum=histogram.total,
        sum_squares=histogram.square_sum,
        # An empty bin in front shows where the first one begins.
        bucket_limit=limits[first : last + 2].tolist(),
        bucket=[0, *counts[first : last + 1].tolist()],
    )
