"""The scale of the loss, by which mixed-precision training multiplies all gradients."""

import math
from collections.abc import Mapping
from typing import Protocol

from gradsieve.errors import SieveError
from gradsieve.runtime.notices import tell
from gradsieve.sieve import Moments


class Scaler(Protocol):
    """As ``torch.amp.GradScaler``."""

    def get_scale(self) -> float: ...


class LossScale:
    """What gradients are multiplied by in this step.

    Everything that outlives a step (residuals, thresholds, moments, bases) is in the units of the
    gradients without it.

    Raises:
        TypeError: `scaler` has no ``get_scale()``.
    """

    def __init__(self, scaler: Scaler | None) -> None:
        if scaler is not None and not callable(getattr(scaler, "get_scale", None)):
            raise TypeError(
                "scaler must have get_scale(), as torch.amp.GradScaler, got "
                f"{type(scaler).__name__}"
            )
        self._scaler = scaler
        self.is_told = scaler is not None
        self.now = 1.0
        self.watch = None if scaler is not None else ScaleWatch()

    def read(self) -> None:
        """Ask the scaler, at the beginning of a step.

        Raises:
            SieveError: the scale is not positive and finite.
        """
        if self._scaler is None:
            return
        self.now = float(self._scaler.get_scale())
        if not 0 < self.now < math.inf:
            raise SieveError(f"the scaler's scale is {self.now}; it must be positive and finite")


JUMP, STAYED = 0.6, 0.5
"""Octaves that gradients move by, on average over the parameters: in one step, and still in the
next. Batches move them less, or back again."""
LARGE_NORM = 50.0
"""The norm of all gradients, below which hardly any scale of a loss has multiplied them."""
LEAST_OF_EACH = 0.25
"""Octaves that each of the parameters moves by, in the same direction."""


class ScaleWatch:
    """Tells once that all gradients have jumped together, as they do where a scaler is not told."""

    def __init__(self) -> None:
        self._before: dict[str, float] = {}
        """log₂ of each parameter's root mean square in the last step."""
        self._jump: tuple[float, dict[str, float]] | None = None
        """A jump in the last step, and the sizes before it."""
        self._has_told = False

    def see(self, moments: Mapping[str, Moments], *, skipped: bool) -> None:
        """Take the moments of a step.

        Args:
            skipped: a gradient was not finite. After such a step one jump is enough; else the next
                step must confirm it.
        """
        if self._has_told:
            return
        if skipped:
            if self._before:
                self._jump = 0.0, self._before
            self._before = {}
            return
        now = sizes_of(moments)
        squares = sum(found.gradient_square_sum for found in moments.values())
        if squares < LARGE_NORM**2:
            self._jump, self._before = None, now
            return
        if self._jump is not None:
            expected, before = self._jump
            found = shared_jump(before, now, STAYED if expected else JUMP)
            if found and found * expected >= 0:
                self._tell(found)
        found = shared_jump(self._before, now, JUMP)
        self._jump = (found, self._before) if found else None
        self._before = now

    def _tell(self, octaves: float) -> None:
        self._has_told = True
        word = "larger" if octaves > 0 else "smaller"
        tell(
            f"gradsieve: all gradients became {2 ** abs(octaves):.1f} times {word} from one step "
            "to the next, as where the scale of the loss changes; residuals stay in the units of "
            "before. If a GradScaler scales the loss, give it: gs.attach(model, scaler=scaler)"
        )


def sizes_of(moments: Mapping[str, Moments]) -> dict[str, float]:
    return {
        name: math.log2(found.gradient_square_sum / found.numel) / 2
        for name, found in moments.items()
        if 0 < found.gradient_square_sum < math.inf
    }


def shared_jump(before: Mapping[str, float], now: Mapping[str, float], least: float) -> float:
    """Octaves by which all parameters' gradients have moved; 0 where that is less than `least`."""
    moved = [now[name] - before[name] for name in now.keys() & before.keys()]
    if not moved or len(moved) < len(now) / 2:
        return 0.0
    middle = sum(moved) / len(moved)
    together = all(one * middle > 0 and abs(one) >= LEAST_OF_EACH for one in moved)
    return middle if together and abs(middle) >= least else 0.0
