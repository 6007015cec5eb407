"""The configuration of a run, which is enough to repeat it, and its result."""

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
    """The method as `gradsieve.lab.methods.table` reads it."""
    ranks: int
    steps: int
    directory: str
    """The directory in which rank 0 writes records, and the result at the end."""
    interface: str
    """The network interface whose counters are read, "eth0" or "lo"."""
    link: str
    """A description of the link."""
    learning_rate: float
    seed: int = 0
    warmup_steps: int = WARMUP_STEPS
    """Medians and byte counts leave out so many steps at the start."""
    title: str = ""
    """What reports call the run; runs of one title differ only in their seeds."""
    ranks_per_node: int = 1
    """The number of ranks behind each interface; they stand for one machine."""
    histograms_at: tuple[int, ...] = ()
    """The steps in which distributions of all elements are counted."""

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
    """Rank 0's median over the steps after the warm-up. With local steps it is the median, over
    phases, of the mean of a phase's steps."""
    limit_seconds: float
    """The median of the lock-step steps that the same processes made in between."""
    ratio: float
    """step_seconds / limit_seconds."""
    bytes_per_step: float
    """What a rank sent by the interface's counter, headers included; an equal share of what its
    node sent."""
    bits_per_parameter: float
    """8 · bytes of frames / elements that the rank holds, as a mean over the steps after the
    warm-up. Where the method makes no frames, the bytes are those that the interface sent."""
    metric: float | None
    """The workload's metric; None where the method trains no common model."""
    metric_name: str
    steps: int
    alone_seconds: float | None = None
    """The median of the local steps beside which nothing was exchanged; None without such steps."""
    ranks_per_node: int = 1

    def save(self, directory: Path) -> None:
        write_whole(directory / RESULT, asdict(self))


def write_whole(path: Path, content: object) -> None:
    """Write JSON so that the file is whole or missing, even after a crash."""
    beside = path.with_suffix(".part")
    beside.write_text(json.dumps(content, indent=1) + "\n")
    beside.replace(path)


def read_result(directory: Path) -> RunResult:
    return RunResult(**json.loads((directory / RESULT).read_text()))
