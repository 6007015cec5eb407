"""One training run whose ranks are played one after the other in this process."""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields

import torch

from gradsieve.lab.methods.played.compressor import SendsPositions
from gradsieve.lab.methods.table import play_method
from gradsieve.lab.workloads.replica import Replica
from gradsieve.lab.workloads.workload import load_workload

MEASURED_AT = (0.25, 0.5, 0.75, 1.0)
"""Quality is measured after these shares of the steps."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What decides the result of a run, given the versions of Python and torch."""

    workload: str
    method: str
    learning_rate: float
    seed: int
    steps: int
    ranks: int

    @property
    def key(self) -> tuple[object, ...]:
        """What a setting has in common with the runs that are finished of it."""
        return tuple(getattr(self, field.name) for field in fields(Setting))


@dataclass(frozen=True, slots=True, kw_only=True)
class PlayedRun(Setting):
    bits_per_parameter: float
    """The mean over ranks and over all steps."""
    quality: float
    """The workload's metric after the last step."""
    curve: list[list[float]]
    """Pairs of the steps done and the metric then."""
    seconds: float
    torch: str
    bits_at_entropy: float | None = None
    """`bits_per_parameter`, had the position of each element taken its entropy; None where no
    positions travel, or where they are coded already."""


def play(
    setting: Setting, watch: Callable[[int, float], None] = lambda step, loss: None
) -> PlayedRun:
    """Train, and call `watch` with each step and the first rank's loss.

    Raises:
        ValueError: there is no such workload or method.
    """
    start = time.perf_counter()
    workload = load_workload(setting.workload)
    torch.manual_seed(setting.seed)
    replica = Replica(workload, workload.make_model(), setting.learning_rate, setting.steps)
    numel = sum(parameter.numel() for parameter in replica.model.parameters())
    training = play_method(setting.method, replica, setting.ranks)
    batches = [workload.batches(r, setting.ranks, setting.seed) for r in range(setting.ranks)]
    measured = {max(1, round(share * setting.steps)) for share in MEASURED_AT}
    bits, curve = 0.0, []
    for step in range(1, setting.steps + 1):
        loss, sent = training.step(batches)
        bits += sent
        if step == setting.steps:
            bits += training.finish()
        watch(step, loss)
        if step in measured:
            curve.append([step, workload.metric(training.model, 0, 1).mean])
    compressor = training.compressor
    at_entropy = compressor.bits_at_entropy if isinstance(compressor, SendsPositions) else None
    return PlayedRun(
        **asdict(setting),
        bits_per_parameter=bits / numel / setting.steps,
        quality=curve[-1][1],
        curve=curve,
        seconds=time.perf_counter() - start,
        torch=torch.__version__,
        bits_at_entropy=None if at_entropy is None else at_entropy / numel / setting.steps,
    )
