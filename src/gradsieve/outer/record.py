"""What happened in each outer step."""

from dataclasses import dataclass

from gradsieve.telemetry.record import StepRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class OuterRecord:
    """One rank's account of one exchange; times in seconds."""

    step: int
    """Inner steps done when the exchange began."""
    every: int
    """Inner steps from one exchange of a parameter to the next."""
    fragment: int
    """Of the model: which one was exchanged."""
    exchange: StepRecord
    """Of the pseudo-gradient."""
    bits_per_parameter: float
    """8 · bytes of frames / elements of the whole model / inner steps since the exchange before."""
    slowest_rank: int
    """The one whose inner steps took longest since the exchange before."""
    waited_seconds: float
    """Until all ranks had come so far; of the communication thread, and of training where it had
    nothing else to do (see `exposed_seconds`)."""
    exposed_seconds: float
    """What the exchange added to training: preparing and merging it, the wait for it, and the
    processor time that it took from the inner steps where no core was free."""
