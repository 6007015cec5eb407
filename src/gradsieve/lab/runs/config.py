"""What one run is: enough to repeat it."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

RESULT = "result.json"
CONFIG = "config.json"
WARMUP_STEPS = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class RunConfig:
    workload: str
    method: str
    """As `gradsieve.lab.methods.table` reads it."""
    ranks: int
    steps: int
    directory: str
    """Where rank 0 writes records, and the result at the end."""
    interface: str
    """The network interface whose counters are read, "eth0" or "lo"."""
    link: str
    """The link in words."""
    learning_rate: float
    seed: int = 0
    warmup_steps: int = WARMUP_STEPS
    """Steps at the start that medians and byte counts leave out."""
    title: str = ""
    """In words; runs of one title differ in their seeds."""
    histograms_at: tuple[int, ...] = ()
    """Steps in which distributions are counted, of all elements."""

    def save(self) -> Path:
        path = Path(self.directory) / CONFIG
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(asdict(self), indent=1) + "\n")
        return path


def read_config(path: Path) -> RunConfig:
    read = json.loads(path.read_text())
    return RunConfig(**(read | {"histograms_at": tuple(read.get("histograms_at", ()))}))


@dataclass(frozen=True, slots=True, kw_only=True)
class RunResult:
    """A row of a comparison; the names are those of `gradsieve bench step`."""

    workload: str
    link: str
    ranks: int
    method: str
    step_seconds: float
    """Median over the steps after the warm-up, of rank 0; of local steps the median over phases, of
    the mean of a phase's steps."""
    limit_seconds: float
    """Median of the lock-step steps that were made between them, in the same processes."""
    ratio: float
    """step_seconds / limit_seconds."""
    bytes_per_step: float
    """Sent by a rank, by the interface's counter, headers included."""
    bits_per_parameter: float
    """8 · bytes of frames / elements, mean of the steps after the warm-up; of what the interface
    sent where the method makes no frames."""
    metric: float | None
    """None where the method trains no common model."""
    metric_name: str
    steps: int
    alone_seconds: float | None = None
    """Median of the local steps beside which nothing was exchanged; None where there are none."""

    def save(self, directory: Path) -> None:
        write_whole(directory / RESULT, asdict(self))


def write_whole(path: Path, content: object) -> None:
    """JSON that is there as a whole or not at all, also after a crash."""
    beside = path.with_suffix(".part")
    beside.write_text(json.dumps(content, indent=1) + "\n")
    beside.replace(path)


def read_result(directory: Path) -> RunResult:
    return RunResult(**json.loads((directory / RESULT).read_text()))
