"""How fast `select` is compared with `tensor.add_`, and what its first call costs."""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from gradsieve.runtime.threads import usable_cores
from gradsieve.sieve import Workspace, select

DENSITIES = (0.001, 0.01, 0.05, 0.30)
FIRST_CALL = """
import time, torch
from gradsieve.sieve import select
gradient, residual = torch.randn(100_000), torch.zeros(100_000)
start = time.perf_counter()
select(gradient, residual, 1.0)
print(time.perf_counter() - start)
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class SelectRow:
    """Medians at one density; rates are in elements a second."""

    threads: int
    density: float
    numel: int
    select_rate: float
    add_rate: float
    ratio: float
    """select_rate / add_rate. At 1 memory is the limit, for reading two arrays and writing one."""


def bench_select(numel: int, repeats: int) -> Iterator[SelectRow]:
    """Yield the rows of one thread, then of all; both take turns on the same arrays."""
    generator = torch.Generator().manual_seed(0)
    gradient = torch.randn(numel, generator=generator, dtype=torch.float32, device="cpu")
    residual = torch.randn(numel, generator=generator, dtype=torch.float32, device="cpu").mul_(0.1)
    before = torch.get_num_threads()
    cores = usable_cores()
    try:
        for threads in sorted({1, cores}):
            torch.set_num_threads(threads)
            for density in DENSITIES:
                yield bench_density(gradient, residual, density, threads, repeats)
    finally:
        torch.set_num_threads(before)


def bench_density(
    gradient: Tensor, residual: Tensor, density: float, threads: int, repeats: int
) -> SelectRow:
    accumulated = (gradient + residual).abs()
    kept = max(1, round(accumulated.numel() * (1 - density)))
    threshold = float(accumulated.kthvalue(kept).values)
    workspace, left = Workspace(), residual.clone()

    def run_select() -> None:
        workspace.clear()
        select(gradient, left, threshold, out=workspace)

    def run_add() -> None:
        left.add_(gradient)

    # The first calls compile, size the workspace and touch its pages.
    for _ in range(3):
        left.copy_(residual)
        run_select()
    selects, adds = [], []
    for _ in range(repeats):
        left.copy_(residual)
        selects.append(seconds(run_select))
        left.copy_(residual)
        adds.append(seconds(run_add))
    select_rate = gradient.numel() / statistics.median(selects)
    add_rate = gradient.numel() / statistics.median(adds)
    return SelectRow(
        threads=threads,
        density=density,
        numel=gradient.numel(),
        select_rate=select_rate,
        add_rate=add_rate,
        ratio=select_rate / add_rate,
    )


def seconds(run: Callable[[], None]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def bench_first_call() -> tuple[float, float]:
    """Return the seconds of a first `select`, with an empty compiler cache and with a full one."""
    with tempfile.TemporaryDirectory() as cache:
        environment = os.environ | {"NUMBA_CACHE_DIR": cache}
        times = [
            subprocess.run(
                [sys.executable, "-c", FIRST_CALL],
                env=environment,
                check=True,
                capture_output=True,
                text=True,
            ).stdout
            for _ in range(2)
        ]
    return float(times[0]), float(times[1])
