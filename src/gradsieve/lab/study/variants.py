"""The variants of training that the study compares: each rule, from several seeds."""

from dataclasses import asdict, dataclass
from pathlib import Path

from gradsieve.lab.link import Link
from gradsieve.lab.runs.config import CONFIG, RunConfig, read_config, read_result

WORKLOAD = "mnist_cnn"
RUNS = "runs"
# Every parameter is pruned and values travel as they are, as in the original. After one dense step
# Adam has a moment for every element: torch's square root of zeros takes fifteen times as long.
EXACT = "values=float32,min_numel=0,exchange=gather,start_step=1"
SCALES = (1, 2, 3, 4, 5)
STABLE_SCALE = 4
COUNTED_AFTER = (0, 50, 200, 550, 950)
"""The steps, of ORIGINAL_STEPS, after which the original counted distributions."""
ORIGINAL_STEPS = 1000
QUICK_STEPS = 40


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    name: str
    """What its directories are called."""
    title: str
    method: str
    all_seeds: bool = True
    is_quick: bool = True
    """Whether the quick study trains it too."""
    counts: bool = False
    """Whether the run of the first seed counts distributions."""


PLAIN = Variant(name="plain", title="plain DDP", method="ddp", counts=True)
SIGMA = {
    k: Variant(
        name=f"sigma-{k}",
        title=f"{k} σ, accumulating",
        method=f"sieve:sigma={k},{EXACT}",
        counts=True,
    )
    for k in (1, 2)
}
DROPPING = {
    k: Variant(
        name=f"sigma-{k}-dropping",
        title=f"{k} σ, dropping",
        method=f"sieve:sigma={k},error_feedback=no,{EXACT}",
    )
    for k in (1, 2)
}
UNSENT_MEAN = {
    scale: Variant(
        name=f"unsent-mean-{scale}",
        title=f"unsent mean × {scale}",
        method=f"sieve:unsent-mean={scale},{EXACT}",
        all_seeds=scale == STABLE_SCALE,
        is_quick=scale in (1, STABLE_SCALE),
    )
    for scale in SCALES
}
LEVELS = {
    "sigma": Variant(
        name="sigma-2-levels",
        title="2 σ, levels",
        method="sieve:sigma=2,exchange=gather,start_step=1",
        is_quick=False,
    ),
    "unsent mean": Variant(
        name=f"unsent-mean-{STABLE_SCALE}-levels",
        title=f"unsent mean × {STABLE_SCALE}, levels",
        method=f"sieve:unsent-mean={STABLE_SCALE},exchange=gather,start_step=1",
        is_quick=False,
    ),
}
BY_ITSELF = Variant(name="budget-auto", title="default (Budget auto)", method="sieve", counts=True)
VARIANTS = (
    PLAIN,
    *SIGMA.values(),
    *DROPPING.values(),
    *UNSENT_MEAN.values(),
    *LEVELS.values(),
    BY_ITSELF,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Study:
    """What one call of the study trains."""

    ranks: int
    steps: int
    seeds: int
    learning_rate: float
    out: Path
    quick: bool

    @property
    def counted_at(self) -> tuple[int, ...]:
        """The steps whose distributions are counted, moved to the same part of a shorter run."""
        return tuple(round(step * self.steps / ORIGINAL_STEPS) for step in COUNTED_AFTER)

    def runs(self, link: Link) -> list[RunConfig]:
        """Return the runs in order: all variants of a seed, then those of the next seed."""
        return [
            RunConfig(
                workload=WORKLOAD,
                method=variant.method,
                ranks=self.ranks,
                steps=self.steps,
                directory=str(self.out / RUNS / f"{variant.name}-seed-{seed}"),
                interface=link.interface,
                link=link.description,
                learning_rate=self.learning_rate,
                seed=seed,
                title=variant.title,
                histograms_at=self.counted_at if variant.counts and seed == 0 else (),
            )
            for seed in range(self.seeds)
            for variant in VARIANTS
            if (variant.is_quick or not self.quick) and (variant.all_seeds or seed == 0)
        ]


def is_finished(config: RunConfig) -> bool:
    """Return whether an earlier call has finished this run.

    Raises:
        ValueError: the directory holds another finished run.
    """
    directory = Path(config.directory)
    try:
        read_result(directory)
        made = read_config(directory / CONFIG)
    except (OSError, TypeError, ValueError):
        return False
    wanted, found = asdict(config), asdict(made)
    differing = [
        f"{name} {found[name]}, not {wanted[name]}"
        for name in wanted
        if name != "directory" and found[name] != wanted[name]
    ]
    if differing:
        raise ValueError(
            f"{directory} holds a finished run of other settings ({'; '.join(differing)}); give "
            "--out another directory"
        )
    return True
