"""The ways of exchanging gradients that runs compare."""

from collections.abc import Callable
from dataclasses import dataclass

from gradsieve.thresholds import Sigma, Threshold, UnsentMean


@dataclass(frozen=True, slots=True)
class Method:
    name: str
    title: str
    """For tables and legends."""
    threshold: Callable[[], Threshold] | None = None
    """Makes the policy of a sieved run; None trains without gradsieve."""
    ramp_steps: int = 0
    exchanges: bool = True
    """False: lock-step, where one 4-byte all-reduce a step is all that travels."""


METHODS = {
    method.name: method
    for method in (
        Method("ddp", "plain DDP"),
        Method("lock-step", "lock-step (the limit)", exchanges=False),
        Method("sigma-2", "sieve, 2 σ", lambda: Sigma(2.0)),
        # Without a ramp its first steps send too little for the network to find its way.
        Method("unsent-mean", "sieve, unsent mean", UnsentMean, ramp_steps=50),
    )
}
