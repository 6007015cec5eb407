"""The record of an outer step, which users and the recorder read."""

from dataclasses import dataclass

from gradsieve.telemetry.record import StepRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class OuterRecord:
    """What happened on one rank in one exchange of local steps. All times are in seconds."""

    step: int
    """Number of inner steps done when the exchange began."""
    every: int
    """Number of inner steps from one exchange of a parameter to the next."""
    fragment: int
    """Number of the fragment of the model that was exchanged, from 0."""
    exchange: StepRecord
    """The record of the exchange of the pseudo-gradient."""
    bits_per_parameter: float
    """Bits sent per parameter of the whole model and inner step: 8 · bytes of frames / elements /
    inner steps since the exchange before."""
    slowest_rank: int
    """Rank whose inner steps took longest since the exchange before."""
    waited_seconds: float
    """Seconds that the communication thread waited until all ranks had begun the exchange. The part
    of it that delayed training is in `exposed_seconds`."""
    exposed_seconds: float
    """Seconds that the exchange added to training: preparing and merging it, the wait for it, and
    the processor time that it took from the inner steps where no core was free."""
