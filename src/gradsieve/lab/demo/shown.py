"""The methods that the demo shows."""

from dataclasses import dataclass

from gradsieve.lab.methods.table import trains_together


@dataclass(frozen=True, slots=True)
class Shown:
    name: str
    """The name of its directory."""
    title: str
    """What tables and legends call it."""
    method: str

    @property
    def exchanges(self) -> bool:
        return trains_together(self.method)


SHOWN = (
    Shown("ddp", "plain DDP", "ddp"),
    Shown("lock-step", "lock-step (the limit)", "lock-step"),
    Shown("auto", "sieve, default", "sieve"),
    # After one dense step Adam has a moment for every element.
    Shown("sigma-2", "sieve, 2 σ", "sieve:sigma=2,start_step=1"),
    # Without a ramp the first steps send too little for the network to learn.
    Shown(
        "unsent-mean",
        "sieve, unsent mean",
        "sieve:unsent-mean=4,start_step=1,ramp_steps=50",
    ),
)
