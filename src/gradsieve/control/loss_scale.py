"""The scale of the loss, by which mixed-precision training multiplies all gradients.

Residuals outlive a change of the scale, so they are kept without it.
"""

import math
from collections.abc import Mapping
from typing import Protocol

from gradsieve.errors import SieveError
from gradsieve.runtime.notices import tell
from gradsieve.sieve import Moments


class Scaler(Protocol):
    """The method of ``torch.amp.GradScaler`` that the sieve calls."""

    def get_scale(self) -> float: ...


class LossScale:
    """The scale of the loss in the current step; 1 without a scaler.

    Everything that outlives a step (residuals, thresholds, moments, bases) is in units of the
    unscaled gradients.

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
        """Read the scale from the scaler at the beginning of a step.

        Raises:
            SieveError: the scale is not positive and finite.
        """
        if self._scaler is None:
            return
        self.now = float(self._scaler.get_scale())
        if not 0 < self.now < math.inf:
            raise SieveError(f"the scaler's scale is {self.now}; it must be positive and finite")


JUMP, STAYED = 0.6, 0.5
"""Mean number of octaves (log₂) over the parameters that gradients must move in one step, and that
must remain in the next, to count as a jump. Batches move them less, or move them back."""
LARGE_NORM = 50.0
"""Norm of all gradients below which they are taken as unscaled."""
LEAST_OF_EACH = 0.25
"""Number of octaves that the gradient of each parameter must move in the same direction."""


class ScaleWatch:
    """Warns once if all gradients jump together, as they do where `attach` lacks the scaler."""

    def __init__(self) -> None:
        self._before: dict[str, float] = {}
        """log₂ of the root mean square of each gradient in the last step."""
        self._jump: tuple[float, dict[str, float]] | None = None
        """The octaves of a jump in the last step, and the sizes before it."""
        self._has_told = False

    def see(self, moments: Mapping[str, Moments], *, skipped: bool) -> None:
        """Look at the moments of a step.

        Args:
            skipped: whether a gradient was not finite. After such a step one jump is enough for
                the warning; otherwise the next step must confirm it.
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
    """Return the octaves by which all gradients have moved together; 0 if less than `least`."""
    moved = [now[name] - before[name] for name in now.keys() & before.keys()]
    if not moved or len(moved) < len(now) / 2:
        return 0.0
    middle = sum(moved) / len(moved)
    together = all(one * middle > 0 and abs(one) >= LEAST_OF_EACH for one in moved)
    return middle if together and abs(middle) >= least else 0.0
