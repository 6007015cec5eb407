"""The ways of exchanging gradients that the demo shows."""

from dataclasses import dataclass

from gradsieve.lab.methods.table import trains_together


@dataclass(frozen=True, slots=True)
class Shown:
    name: str
    """Of its directory."""
    title: str
    """For tables and legends."""
    method: str

    @property
    def exchanges(self) -> bool:
        return trains_together(self.method)


SHOWN = (
    Shown("ddp", "plain DDP", "ddp"),
    Shown("lock-step", "lock-step (the limit)", "lock-step"),
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
