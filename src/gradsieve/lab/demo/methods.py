"""The ways of exchanging gradients that the demo shows."""

from dataclasses import dataclass

from gradsieve.lab.methods.distributed import LOCK_STEP


@dataclass(frozen=True, slots=True)
class Shown:
    name: str
    """Of its directory."""
    title: str
    """For tables and legends."""
    method: str

    @property
    def exchanges(self) -> bool:
        return self.method != LOCK_STEP


SHOWN = (
    Shown("ddp", "plain DDP", "ddp"),
    Shown("lock-step", "lock-step (the limit)", LOCK_STEP),
    Shown("auto", "sieve, by itself", "sieve"),
    # After a dense step Adam knows every element.
    Shown("sigma-2", "sieve, 2 σ", "sieve:sigma=2,start_step=1"),
    # Without a ramp its first steps send too little for the network to find its way.
    Shown(
        "unsent-mean",
        "sieve, unsent mean",
        "sieve:unsent-mean=4,start_step=1,ramp_steps=50",
    ),
)
