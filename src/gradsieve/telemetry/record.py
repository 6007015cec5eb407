"""What happened in each step, and in all of them."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from torch import Tensor

if TYPE_CHECKING:
    from gradsieve.parameters.parameter import ParameterState


@dataclass(frozen=True, slots=True, kw_only=True)
class StepRecord:
    """One rank's account of one step; times in seconds, sizes in bytes."""

    step: int
    exchange: str
    """The way that the gradients took: one of those that `SieveState` takes, or "plain"."""
    reason: str
    """Why, where `exchange="auto"` has chosen it."""
    thresholds: dict[str, float]
    """Per parameter; parameters that travel whole are left out."""
    densities: dict[str, float]
    """Survivors / elements, per parameter as above."""
    density: float
    """Elements sent / elements, over all parameters."""
    frame_bytes: int
    """Of this rank's frames; steps without frames count what an all-reduce sends of the buckets."""
    bits_per_parameter: float
    """8 · frame_bytes / elements."""
    add_seconds: float
    """The sum of a node's ranks, in a hierarchical exchange."""
    rotate_seconds: float
    """On coefficients of gradients; bringing averages back is a part of decode."""
    select_seconds: float
    encode_seconds: float
    exchange_seconds: float
    decode_seconds: float
    exposed_seconds: float | None
    """What the exchange adds to the step: the wait for what the backward pass did not hide, and
    the processor time that it took from the backward pass where no core was free; None for a plain
    step."""
    residual_norm: float
    """Euclidean norm of the residuals of all parameters."""
    plain: bool
    """Nothing was pruned: a dense exchange, a step before `start_step`, or the first of a state
    without names."""
    nonfinite: int
    """Elements of this rank's gradient that were NaN or infinite."""
    nonfinite_parameters: dict[int, list[str]] = field(default_factory=dict)
    """Rank → its parameters with such elements, on every rank; empty where all are finite. Where a
    rank has more than 20 of them, the first 20."""
    loss_scale: float = 1.0
    """What gradients were multiplied by, as the scaler tells; 1 without one. Thresholds and
    residuals are in units of the gradients without it."""

    def scalars(self) -> dict[str, float]:
        """The numbers that trackers draw over steps, by names that group in their pages."""
        numbers = {
            "sieve/density": self.density,
            "sieve/bits_per_parameter": self.bits_per_parameter,
            "sieve/residual_norm": self.residual_norm,
        }
        if self.exposed_seconds is not None:
            numbers["sieve/exposed_seconds"] = self.exposed_seconds
        numbers |= {f"threshold/{name}": value for name, value in self.thresholds.items()}
        return numbers | {f"density/{name}": value for name, value in self.densities.items()}


class Observer(Protocol):
    """Sees each step of a state, in the training thread; raises nothing."""

    def see_gradients(
        self, step: int, parameters: Sequence["ParameterState"], gradients: Sequence[Tensor]
    ) -> None:
        """A bucket's, flat, of this rank, before they are pruned; the residuals of before."""

    def end_step(self, record: StepRecord) -> None: ...


@dataclass(slots=True)
class Totals:
    """A rank's frames, and what they have added to steps, since `attach`; prints as one line."""

    exchanges: dict[str, int] = field(default_factory=dict)
    """Steps, by `StepRecord.exchange`."""
    frame_bytes: int = 0
    """The sum of `StepRecord.frame_bytes`."""
    bits: float = 0.0
    """The sum over steps of `StepRecord.bits_per_parameter`."""
    exposed_seconds: float = 0.0
    """Of steps that pruned; dense ones are not timed."""
    pruned_steps: int = 0

    @property
    def steps(self) -> int:
        return sum(self.exchanges.values())

    @property
    def bits_per_parameter(self) -> float:
        """The mean over steps."""
        return self.bits / max(1, self.steps)

    def add(self, record: StepRecord) -> None:
        self.exchanges[record.exchange] = self.exchanges.get(record.exchange, 0) + 1
        self.frame_bytes += record.frame_bytes
        self.bits += record.bits_per_parameter
        if record.exposed_seconds is not None:
            self.exposed_seconds += record.exposed_seconds
            self.pruned_steps += 1

    def __str__(self) -> str:
        often = sorted(self.exchanges.items(), key=lambda item: -item[1])
        ways = ", ".join(f"{count} {way}" for way, count in often)
        sent = (
            f"{self.steps} steps ({ways}), frames of {self.frame_bytes / 1e6:,.1f} MB, "
            f"{self.bits_per_parameter:.2f} bits a parameter and step"
        )
        if not self.pruned_steps:
            return sent
        exposed = 1000 * self.exposed_seconds / self.pruned_steps
        return f"{sent}; where pruned, the exchange added {exposed:.1f} ms to a step"
