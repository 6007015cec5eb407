"""A rank of `gradsieve bench recorder`: ``torchrun -m gradsieve.lab.bench.recorder_rank ORDER``."""

import shutil
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from gradsieve.control.thresholds import Sigma
from gradsieve.exchange import FrameExchange, numbers_of_all
from gradsieve.hook import attach
from gradsieve.lab.bench.recorder import RecorderOrder, RecorderRow
from gradsieve.lab.runs.order import answer_order
from gradsieve.lab.workloads.workload import cross_entropy, load_workload
from gradsieve.recording import Recorder
from gradsieve.recording.files import HISTOGRAMS, RECORDS

HISTOGRAMS_EVERY, WARM_UP = 5, 6
"""Numbers of steps. The first histograms are counted in the warm-up."""
Result = TypeVar("Result")


class Stopwatch:
    """The processor seconds that calls took on their thread since the last reading.

    A clock would count the communication thread too, where both share a core.
    """

    def __init__(self) -> None:
        self._seconds = 0.0

    def timed(self, call: Callable[..., Result]) -> Callable[..., Result]:
        def measured(*args: object, **options: object) -> Result:
            start = time.thread_time()
            try:
                return call(*args, **options)
            finally:
                self._seconds += time.thread_time() - start

        return measured

    def read(self) -> float:
        seconds, self._seconds = self._seconds, 0.0
        return seconds


def measure(order: RecorderOrder) -> RecorderRow:
    if dist.get_rank() == 0:
        shutil.rmtree(order.records, ignore_errors=True)
    dist.barrier()
    workload = load_workload(order.workload)
    torch.manual_seed(0)
    model = DistributedDataParallel(workload.make_model(), gradient_as_bucket_view=True)
    state = attach(model, threshold=Sigma(2), exchange="gather", start_step=1)
    recorder = Recorder(state, model, order.records, histograms_every=HISTOGRAMS_EVERY)
    watch = Stopwatch()
    for name in ("see_gradients", "end_step", "log"):
        setattr(recorder, name, watch.timed(getattr(recorder, name)))
    optimizer = workload.make_optimizer(model, workload.learning_rate)
    data = workload.batches(dist.get_rank(), dist.get_world_size(), 0)
    steps: list[float] = []
    plain: list[float] = []
    counting: list[float] = []
    for step in range(order.steps):
        start = time.perf_counter()
        optimizer.zero_grad()
        loss = cross_entropy(model, *next(data))
        loss.backward()
        optimizer.step()
        recorder.log(loss=loss.item())
        recorded, seconds = watch.read(), time.perf_counter() - start
        if step < WARM_UP:
            continue
        steps.append(seconds - recorded)
        # What other ranks have counted is written in the step after.
        near = step % HISTOGRAMS_EVERY in (0, 1)
        (counting if near else plain).append(recorded)
    recorder.close()
    mine = [
        statistics.median(steps),
        statistics.median(plain),
        2 * statistics.fmean(counting) - statistics.median(plain),
    ]
    everyone = FrameExchange(dist.group.WORLD or dist.new_group())
    slowest = [max(told) for told in zip(*numbers_of_all(everyone, float64(mine)), strict=True)]
    sizes = [size_of(Path(order.records) / name) for name in (RECORDS, HISTOGRAMS)]
    return RecorderRow(
        workload=workload.name,
        parameters=sum(p.numel() for p in model.parameters()),
        layers=sum(1 for _ in model.parameters()),
        step=slowest[0],
        scalars=slowest[1],
        histograms=slowest[2],
        record_bytes=sizes[0] // order.steps,
        histogram_bytes=sizes[1] // -(-order.steps // HISTOGRAMS_EVERY),
    )


def float64(numbers: list[float]) -> torch.Tensor:
    return torch.tensor(numbers, dtype=torch.float64, device="cpu")


def size_of(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


if __name__ == "__main__":
    answer_order(sys.argv[1], lambda order: measure(RecorderOrder(**order)))
