"""One rank of a run: ``torchrun -m gradsieve.runs.train CONFIG``."""

import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from gradsieve.hook import attach
from gradsieve.link import read_counters
from gradsieve.runs.config import RECORDS, RunConfig, RunResult, read_config
from gradsieve.runs.methods import METHODS, Method
from gradsieve.state import SieveState
from gradsieve.telemetry import JsonLines
from gradsieve.workloads.digits import accuracy, batches
from gradsieve.workloads.mnist import Split, load_mnist
from gradsieve.workloads.mnist_cnn import MnistCnn, make_optimizer

TIMEOUT = timedelta(seconds=120)
WORKLOAD = "mnist_cnn"
LIMIT_EVERY = 5
"""Steps between two lock-step steps: machines drift, so that the limit must be measured beside."""


class LockStep:
    """The limit of synchronous training: nothing travels but one 4-byte all-reduce a step.

    It trains a model of its own on each rank, apart from the others.
    """

    def __init__(self, config: RunConfig) -> None:
        self.model = MnistCnn()
        self.optimizer = make_optimizer(self.model, config.learning_rate)

    def step(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        return train_step(
            self.model, self.optimizer, images, labels, meet=lambda: dist.all_reduce(torch.zeros(1))
        )


def train_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    images: Tensor,
    labels: Tensor,
    meet: Callable[[], object] = lambda: None,
) -> tuple[Tensor, Tensor]:
    """Returns logits and loss; `meet` is called between the backward pass and the update."""
    optimizer.zero_grad()
    logits = model(images)
    loss = F.cross_entropy(logits, labels)
    loss.backward()
    meet()
    optimizer.step()
    return logits, loss


class Run:
    """A rank's model, data and account of a run."""

    def __init__(self, config: RunConfig) -> None:
        self.config = config
        self.method: Method = METHODS[config.method]
        self.rank, self.ranks = dist.get_rank(), dist.get_world_size()
        torch.manual_seed(config.seed)
        self.limit = LockStep(config)
        self.model = DistributedDataParallel(MnistCnn())
        self.optimizer = make_optimizer(self.model, config.learning_rate)
        self.state: SieveState | None = None
        if self.method.threshold is not None:
            self.state = attach(
                self.model,
                threshold=self.method.threshold(),
                ramp_steps=self.method.ramp_steps,
                # With 50 images a step, bases would cost more than the backward pass.
                rotation=0,
            )
        # Dropout must differ between ranks; the weights above must not.
        torch.manual_seed(config.seed + 1 + self.rank)
        self.seconds: list[float] = []
        self.limit_seconds: list[float] = []
        self.bits: list[float] = []

    def train(self) -> float:
        """Train; returns bytes sent a step, by the interface's counter."""
        config = self.config
        data = batches(load_mnist(train=True), self.rank, self.ranks, config.seed)
        sink = JsonLines(Path(config.directory) / RECORDS) if self.rank == 0 else None
        dist.barrier()
        before = read_counters(config.interface)
        sent = 0.0
        for step in range(config.steps):
            record = self.step(step, data)
            after = read_counters(config.interface)
            record["sent_bytes"] = (after - before).sent_bytes / self.sharers
            before = after
            if step >= config.warmup_steps:
                sent += record["sent_bytes"]
                self.seconds.append(float(record["seconds"]))
                self.bits.append(float(record["bits_per_parameter"]))
                if step % LIMIT_EVERY == 0:
                    self.limit_seconds.append(self.time_limit(next(data)))
                    before = read_counters(config.interface)
            if sink is not None:
                sink.write(dict(record))
        return sent / (config.steps - config.warmup_steps)

    @property
    def sharers(self) -> int:
        """Ranks whose traffic one counter counts: all of them on loopback."""
        return self.ranks if self.config.interface == "lo" else 1

    def step(self, number: int, data: Iterator[tuple[Tensor, Tensor]]) -> dict[str, float]:
        images, labels = next(data)
        start = time.perf_counter()
        if self.method.exchanges:
            logits, loss = train_step(self.model, self.optimizer, images, labels)
        else:
            logits, loss = self.limit.step(images, labels)
        seconds = time.perf_counter() - start
        record = {
            "step": number,
            "seconds": seconds,
            "loss": loss.item(),
            "accuracy": (logits.argmax(1) == labels).float().mean().item(),
        }
        return record | self.exchanged()

    def time_limit(self, batch: tuple[Tensor, Tensor]) -> float:
        start = time.perf_counter()
        self.limit.step(*batch)
        return time.perf_counter() - start

    def exchanged(self) -> dict[str, float]:
        """What the method says of its own exchange in the last step."""
        if self.state is not None and self.state.last is not None:
            own = asdict(self.state.last)
            del own["step"]
            return own
        sent = 1.0 if self.method.exchanges else 0.0
        return {"density": sent, "bits_per_parameter": 32 * sent}

    def test_accuracy(self) -> float | None:
        """Accuracy on the whole test set, each rank on its share of the images.

        None in lock-step: ranks that train apart have no common model.
        """
        if not self.method.exchanges:
            return None
        images, labels = load_mnist(train=False)
        mine = Split(images[self.rank :: self.ranks], labels[self.rank :: self.ranks])
        right = accuracy(self.model.module, mine) * len(mine.labels)
        total = torch.tensor([right, len(mine.labels)], dtype=torch.float64)
        dist.all_reduce(total)
        return float(total[0] / total[1])


def pin_to_a_core(rank: int, ranks: int) -> None:
    """A core a rank where there are enough: ranks stand for machines, which share none."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) >= ranks:
        own = len(cores) // ranks
        os.sched_setaffinity(0, cores[rank * own : (rank + 1) * own])
        torch.set_num_threads(own)
    else:
        torch.set_num_threads(1)


def main(path: str) -> None:
    config = read_config(Path(path))
    pin_to_a_core(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]))
    dist.init_process_group("gloo", timeout=TIMEOUT)
    try:
        run = Run(config)
        bytes_per_step = run.train()
        metric = run.test_accuracy()
        if run.rank == 0:
            step_seconds = statistics.median(run.seconds)
            limit_seconds = statistics.median(run.limit_seconds)
            RunResult(
                workload=WORKLOAD,
                link=config.link,
                ranks=run.ranks,
                method=config.method,
                step_seconds=step_seconds,
                limit_seconds=limit_seconds,
                ratio=step_seconds / limit_seconds,
                bytes_per_step=bytes_per_step,
                bits_per_parameter=statistics.fmean(run.bits),
                metric=metric,
                metric_name="test accuracy",
                steps=config.steps,
            ).save(Path(config.directory))
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
