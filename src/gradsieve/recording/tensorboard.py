"""Event files for TensorBoard, written by the tensorboard package itself."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from gradsieve.recording.files import tell_not_written
from gradsieve.recording.histogram import Histogram, edges


class TensorBoard:
    """One event a step: writers that make one a number take longer than the step may."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._writer: Any = None
        self._has_failed = False

    def scalars(self, step: int, numbers: Mapping[str, float]) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary

        self._add(
            step,
            [
                Summary.Value(tag=tag, simple_value=number)
                for tag, number in numbers.items()
                if math.isfinite(number)
            ],
        )

    def histograms(self, step: int, found: Mapping[str, Histogram]) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary

        self._add(step, [Summary.Value(tag=tag, histo=as_proto(one)) for tag, one in found.items()])

    def _add(self, step: int, values: list[Any]) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        if self._has_failed or not values:
            return
        try:
            if self._writer is None:
                self._writer = EventFileWriter(str(self._directory))
            self._writer.add_event(
                Event(wall_time=time.time(), step=step, summary=Summary(value=values))
            )
        except OSError as error:
            self._fail(error)

    def _fail(self, error: OSError) -> None:
        self._has_failed = True
        tell_not_written(self._directory, error)

    def close(self) -> None:
        if self._writer is None:
            return
        try:
            self._writer.close()
        except OSError as error:
            self._fail(error)
        self._writer = None


def tensorboard_or_none(directory: Path, wanted: bool | None) -> TensorBoard | None:
    """Raises ImportError where it is wanted and missing."""
    if wanted is False:
        return None
    if find_spec("tensorboard") is not None:
        return TensorBoard(directory)
    if wanted:
        raise ImportError(
            "Recorder(tensorboard=True) needs the tensorboard package: "
            "pip install 'gradsieve[tensorboard]'"
        )
    return None


def as_proto(histogram: Histogram) -> Any:
    """Of the bins between the first and the last that is not empty."""
    from tensorboard.compat.proto.summary_pb2 import HistogramProto

    filled = np.flatnonzero(histogram.counts)
    if not filled.size:
        return HistogramProto()
    first, last = int(filled[0]), int(filled[-1])
    limits = edges()
    return HistogramProto(
        min=limits[first],
        max=limits[last + 1],
        num=histogram.counted,
        sum=histogram.total,
        sum_squares=histogram.square_sum,
        # An empty bin in front tells where the first begins.
        bucket_limit=limits[first : last + 2].tolist(),
        bucket=[0, *histogram.counts[first : last + 1].tolist()],
    )
