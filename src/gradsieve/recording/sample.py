"""The histograms of a step by kind and parameter, and how ranks send them to the first one."""

import json
import zlib
from base64 import b64decode, b64encode
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from gradsieve.parameters.parameter import ParameterState
from gradsieve.recording.histogram import Histogram, sum_of
from gradsieve.state import SieveState

Histograms = dict[str, dict[str, Histogram]]
"""Histograms by kind ("weight", "gradient", "accumulated" or "residual") and name of parameter."""


@dataclass(slots=True)
class Sample:
    """The histograms of one step, added up over the ranks that have sent theirs."""

    step: int
    histograms: Histograms
    missing: list[int]
    """The ranks that have not sent theirs."""

    def add(self, rank: int, heard: Histograms) -> None:
        """Add the histograms of a rank. Weights are the same on all ranks and counted on one."""
        self.missing.remove(rank)
        for what, by_name in self.histograms.items():
            for name, mine in by_name.items():
                if name in heard.get(what, {}):
                    by_name[name] = sum_of([mine, heard[what][name]])


def as_json(histograms: Histograms) -> dict[str, dict[str, Any]]:
    return {
        what: {name: found.as_json() for name, found in by_name.items()}
        for what, by_name in histograms.items()
    }


def from_json(read: Mapping[str, Mapping[str, Any]]) -> Histograms:
    """Return the histograms that `as_json` has written.

    Raises:
        AttributeError, KeyError, TypeError, ValueError: `read` is something else.
    """
    return {
        what: {name: Histogram.from_json(found) for name, found in by_name.items()}
        for what, by_name in read.items()
    }


def packed(histograms: Histograms) -> str:
    return b64encode(zlib.compress(json.dumps(as_json(histograms)).encode(), 1)).decode()


def unpacked(message: str) -> Histograms:
    return from_json(json.loads(zlib.decompress(b64decode(message))))


def accumulates_in_place(parameter: ParameterState, state: SieveState | None) -> bool:
    """Return whether a rank prunes the sum of its own gradient and residual, element by element."""
    of_node = state is not None and state.engine.topology.averages_on_node
    return not (parameter.whole or parameter.rotation is not None or of_node)


def kept_residual(parameter: ParameterState) -> Tensor:
    """Return the residual that this rank keeps, which may be a piece for its node."""
    residual = parameter.flat_residual()
    if parameter.dealt is None:
        return residual
    return residual[parameter.dealt.start : parameter.dealt.stop]
