"""The record of a step and the totals of all steps, which users and the recorder read."""

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class StepRecord:
    """What happened on one rank in one step.

    Times are in seconds, sizes in bytes. The times of the stages are those of the communication
    thread, which runs beside the backward pass; `exposed_seconds` alone delays training.
    """

    step: int
    """Number of the step, from 0."""
    exchange: str
    """Name of the topology, as in `SieveConfig.exchange`, or "plain" if pruning had not begun."""
    reason: str
    """Reason why ``exchange="auto"`` has chosen the topology; empty if the user has set it."""
    thresholds: dict[str, float]
    """Threshold of each parameter, by name. Parameters that travel whole have none."""
    densities: dict[str, float]
    """Survivors / elements of each parameter, by name. Parameters that travel whole have none."""
    density: float
    """Elements sent / elements, over all parameters."""
    frame_bytes: int
    """Bytes of the frames that this rank has made. For a step without frames, the bytes of the
    buckets as the all-reduce sends them."""
    bits_per_parameter: float
    """8 · frame_bytes / elements."""
    add_seconds: float
    """Seconds of averaging over the ranks of a node, in a hierarchical exchange."""
    rotate_seconds: float
    """Seconds of rotating gradients into coefficients. Rotating averages back is part of
    `decode_seconds`."""
    select_seconds: float
    """Seconds of selecting survivors."""
    encode_seconds: float
    """Seconds of encoding frames."""
    exchange_seconds: float
    """Seconds in which frames travel, including the wait for other ranks."""
    decode_seconds: float
    """Seconds of decoding frames and adding them up."""
    exposed_seconds: float | None
    """Seconds that the exchange adds to the step: the wait for what the backward pass did not
    hide, and the processor time that it took from the backward pass where no core was free. None
    for a plain step."""
    residual_norm: float
    """Euclidean norm of the residuals of all parameters."""
    plain: bool
    """Whether nothing was pruned. This is so in a dense exchange, before `start_step`, and in the
    first step of a state without names."""
    nonfinite: int
    """Number of elements of this rank's gradients that are NaN or infinite."""
    nonfinite_parameters: dict[int, list[str]] = field(default_factory=dict)
    """Names of the parameters with such elements, for each rank that has any; the same on all
    ranks. At most 20 names for each rank."""
    loss_scale: float = 1.0
    """Scale of the loss, as read from the scaler; 1 without one. Thresholds and residuals are in
    units of the unscaled gradients."""

    def scalars(self) -> dict[str, float]:
        """Return the numbers that trackers plot over steps, by names that group in their pages."""
        numbers = {
            "sieve/density": self.density,
            "sieve/bits_per_parameter": self.bits_per_parameter,
            "sieve/residual_norm": self.residual_norm,
        }
        if self.exposed_seconds is not None:
            numbers["sieve/exposed_seconds"] = self.exposed_seconds
        numbers |= {f"threshold/{name}": value for name, value in self.thresholds.items()}
        return numbers | {f"density/{name}": value for name, value in self.densities.items()}


@dataclass(slots=True)
class Totals:
    """Sums over all steps of one rank since `attach`. ``print`` shows them in one line."""

    exchanges: dict[str, int] = field(default_factory=dict)
    """Number of steps for each value of `StepRecord.exchange`."""
    frame_bytes: int = 0
    """Sum of `StepRecord.frame_bytes`, in bytes."""
    bits: float = 0.0
    """Sum of `StepRecord.bits_per_parameter`, in bits."""
    exposed_seconds: float = 0.0
    """Sum of `StepRecord.exposed_seconds` over the pruned steps, in seconds."""
    pruned_steps: int = 0
    """Number of steps that pruned."""

    @property
    def steps(self) -> int:
        """Number of steps."""
        return sum(self.exchanges.values())

    @property
    def bits_per_parameter(self) -> float:
        """Mean bits sent per parameter and step."""
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
        steps = ", ".join(f"{count} {exchange}" for exchange, count in often)
        sent = (
            f"{self.steps} steps ({steps}), {self.frame_bytes / 1e6:,.1f} MB of frames in all, "
            f"{self.bits_per_parameter:.2f} bits a parameter and step"
        )
        if not self.pruned_steps:
            return sent
        exposed = 1000 * self.exposed_seconds / self.pruned_steps
        return f"{sent}; where pruned, the exchange added {exposed:.1f} ms to a step"
