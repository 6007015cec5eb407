"""The sets: which methods, at which learning rates, on which workloads. Add a run here."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from gradsieve.lab.bench.rate.play import Setting


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Methods of one workload, each at each rate."""

    workload: str
    rates: tuple[float, ...]
    methods: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class FrontierSet:
    name: str
    about: str
    ranks: int
    steps: int
    seeds: tuple[int, ...]
    parts: tuple[Part, ...]

    def settings(self, seeds: Sequence[int] = ()) -> Iterator[Setting]:
        """Yield the runs, those of the first seed first.

        Args:
            seeds: instead of the set's own.
        """
        for seed in seeds or self.seeds:
            for part in self.parts:
                for method in part.methods:
                    for rate in part.rates:
                        yield Setting(
                            workload=part.workload,
                            method=method,
                            learning_rate=rate,
                            seed=seed,
                            steps=self.steps,
                            ranks=self.ranks,
                        )


GPT, GPT_MUON = "gpt-small", "gpt-small:optimizer=muon"
CNN, CNN_MUON = "mnist_cnn", "mnist_cnn:optimizer=muon"
DENSE = ("dense",)
HOOK = ("sieve:balanced-sigma=0.25,rotation=256", "sieve:balanced-sigma=1,rotation=256")
LOCAL = (
    "local:every=20,balanced-sigma=1,rotation=256,start_step=200,start=sieve",
    "local:every=20,balanced-sigma=1,rotation=256",
    "local:every=20,balanced-sigma=2,rotation=256",
    *(
        f"local:every={every},balanced-sigma={k},rotation=256,lr=1,momentum=0.5"
        for every, k in ((20, 4), (20, 8), (40, 4))
    ),
)
DILOCO = ("local:every=20,exchange=dense,ramp=0", "local:every=20,exchange=dense")
SPARSELOCO = (
    "sparseloco:every=30",
    "sparseloco:every=15",
    "sparseloco:every=15,k=256",
)
DEMO = ("demo:k=8", "demo:k=32")
# MuLoCo's outer momentum by the number of ranks and the inner optimizer, as its paper found it.
MULOCO_2 = tuple(f"muloco:every=30,bits={bits},momentum=0.6" for bits in (2, 4))
MULOCO_8 = tuple(f"muloco:every=30,bits={bits},momentum=0.8" for bits in (2, 4))
QUANTIZED_DILOCO_2 = ("muloco:every=30,bits=4,momentum=0.8",)
QUANTIZED_DILOCO_8 = ("muloco:every=30,bits=4,momentum=0.9",)


def adamw(*methods: str) -> tuple[Part, ...]:
    """Dense training at three rates, and the other methods at the best of them."""
    return (
        Part(workload=GPT, rates=(1e-3, 2e-3, 4e-3), methods=DENSE),
        Part(workload=GPT, rates=(2e-3,), methods=methods),
        # DeMo is an optimizer of its own.
        Part(workload=GPT, rates=(5e-4, 1e-3, 2e-3), methods=DEMO),
    )


def muon(*methods: str) -> tuple[Part, ...]:
    return (
        Part(workload=GPT_MUON, rates=(4e-3, 8e-3, 1.6e-2), methods=DENSE),
        Part(workload=GPT_MUON, rates=(4e-3, 8e-3), methods=methods),
    )


SETS = {
    one.name: one
    for one in (
        FrontierSet(
            name="quick",
            about="two steps of a few methods, to see that all works",
            ranks=2,
            steps=2,
            seeds=(0,),
            parts=(
                Part(
                    workload=GPT,
                    rates=(2e-3,),
                    methods=("dense", "sieve:balanced-sigma=1", "sparseloco:every=2"),
                ),
                Part(workload=GPT_MUON, rates=(4e-3,), methods=DENSE),
            ),
        ),
        FrontierSet(
            name="adamw-2",
            about="the small transformer with AdamW",
            ranks=2,
            steps=1000,
            seeds=(0,),
            parts=adamw(*HOOK, *LOCAL, *DILOCO, *SPARSELOCO, *QUANTIZED_DILOCO_2),
        ),
        FrontierSet(
            name="adamw-8",
            about="the same on more ranks",
            ranks=8,
            steps=1000,
            seeds=(0,),
            parts=adamw(*HOOK, *LOCAL, *DILOCO, *SPARSELOCO, *QUANTIZED_DILOCO_8),
        ),
        FrontierSet(
            name="muon-2",
            about="the small transformer with Muon",
            ranks=2,
            steps=1000,
            seeds=(0,),
            parts=muon(*HOOK, *LOCAL, *DILOCO, *SPARSELOCO, *MULOCO_2),
        ),
        FrontierSet(
            name="muon-8",
            about="the same on more ranks",
            ranks=8,
            steps=1000,
            seeds=(0,),
            parts=muon(*HOOK, *LOCAL, *DILOCO, *SPARSELOCO, *MULOCO_8),
        ),
        FrontierSet(
            name="mnist-4",
            about="the convolutional network on MNIST",
            ranks=4,
            steps=1000,
            seeds=(0,),
            parts=(
                Part(
                    workload=CNN,
                    rates=(1e-3,),
                    methods=(*DENSE, *HOOK, *LOCAL[1:], *DILOCO, *SPARSELOCO),
                ),
                Part(workload=CNN, rates=(1e-4, 1e-3), methods=DEMO),
                Part(workload=CNN_MUON, rates=(1e-3,), methods=(*DENSE, *MULOCO_2)),
            ),
        ),
    )
}


def find_sets(names: Sequence[str]) -> list[FrontierSet]:
    """Return the sets of these names. Raises ValueError where there is none of a name."""
    for name in names:
        if name not in SETS:
            raise ValueError(f"there is no set {name!r}; choose from {', '.join(SETS)}")
    return [SETS[name] for name in names]


def settings_of(sets: Sequence[FrontierSet], seeds: Sequence[int] = ()) -> list[Setting]:
    """Return the runs of several sets, none twice."""
    return list(dict.fromkeys(setting for one in sets for setting in one.settings(seeds)))
