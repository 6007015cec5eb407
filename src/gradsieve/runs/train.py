"""One rank of a run: ``torchrun -m gradsieve.runs.train CONFIG``."""

import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from gradsieve.link import read_counters
from gradsieve.recording import Recorder
from gradsieve.runs.config import RunConfig, RunResult, read_config
from gradsieve.runs.methods import LOCK_STEP, bucket_cap_mb, register
from gradsieve.runs.rank import joined, sharers
from gradsieve.workloads.workload import Judged, Workload, load_workload

Batch = tuple[Tensor, Tensor]
LIMIT_EVERY = 5
"""Steps between two lock-step steps: machines drift, so that the limit must be measured beside."""


class Replica:
    """A model with its optimizer and schedule."""

    def __init__(self, workload: Workload, config: RunConfig) -> None:
        self.model = workload.make_model()
        self.optimizer = workload.make_optimizer(self.model, config.learning_rate)
        self.schedule = workload.make_schedule(self.optimizer, config.steps)

    def step(
        self, model: nn.Module, batch: Batch, meet: Callable[[], object] = lambda: None
    ) -> tuple[Tensor, Tensor]:
        """Train `model`, which wraps this one's, on a batch; returns logits and loss.

        `meet` is called between the backward pass and the update.
        """
        inputs, targets = batch
        self.optimizer.zero_grad()
        logits = model(inputs)
        loss = F.cross_entropy(logits.flatten(0, -2), targets.flatten())
        loss.backward()
        meet()
        self.optimizer.step()
        self.schedule.step()
        return logits, loss

    def lock_step(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The limit of synchronous training: nothing travels but one 4-byte all-reduce a step.

        It trains this rank's model apart from the others'.
        """
        return self.step(self.model, batch, meet=lambda: dist.all_reduce(torch.zeros(1)))


class Run:
    """A rank's model, data and account of a run."""

    def __init__(self, config: RunConfig) -> None:
        self.config = config
        self.workload = load_workload(config.workload)
        self.rank, self.ranks = dist.get_rank(), dist.get_world_size()
        torch.manual_seed(config.seed)
        self.limit = Replica(self.workload, config)
        self.trained = Replica(self.workload, config)
        self.model = DistributedDataParallel(
            self.trained.model,
            bucket_cap_mb=bucket_cap_mb(config.method),
            gradient_as_bucket_view=True,
        )
        self.state = register(config.method, self.model)
        # Dropout must differ between ranks; the weights above must not.
        torch.manual_seed(config.seed + 1 + self.rank)
        self.seconds: list[float] = []
        self.limit_seconds: list[float] = []
        self.bits: list[float] = []

    def train(self) -> float:
        """Train; returns bytes sent a step, by the interface's counter."""
        config = self.config
        data = self.workload.batches(self.rank, self.ranks, config.seed)
        recorder = Recorder(
            self.state,
            self.model,
            config.directory,
            histograms_every=lambda step: step in config.histograms_at,
            sample=None,
            tensorboard=False,
            about={"title": config.title},
        )
        dist.barrier()
        before = read_counters(config.interface)
        numel = sum(parameter.numel() for parameter in self.model.parameters())
        sent = 0.0
        for step in range(config.steps):
            record = self.step(data)
            after = read_counters(config.interface)
            record["sent_bytes"] = (after - before).sent_bytes / sharers(config.interface)
            bits = self.frame_bits()
            if bits is None:
                bits = record["bits_per_parameter"] = 8 * record["sent_bytes"] / numel
            before = after
            if step >= config.warmup_steps:
                sent += record["sent_bytes"]
                self.seconds.append(float(record["seconds"]))
                self.bits.append(bits)
                if step % LIMIT_EVERY == 0:
                    self.limit_seconds.append(self.time_limit(next(data)))
                    before = read_counters(config.interface)
            recorder.log(**record)
        recorder.close()
        return sent / (config.steps - config.warmup_steps)

    def frame_bits(self) -> float | None:
        """Of the last step; None where the method makes no frames."""
        last = None if self.state is None else self.state.last
        return None if last is None else last.bits_per_parameter

    @property
    def exchanges(self) -> bool:
        return self.config.method != LOCK_STEP

    def step(self, data: Iterator[Batch]) -> dict[str, float]:
        batch = next(data)
        start = time.perf_counter()
        if self.exchanges:
            logits, loss = self.trained.step(self.model, batch)
        else:
            logits, loss = self.limit.lock_step(batch)
        seconds = time.perf_counter() - start
        return {
            "seconds": seconds,
            "loss": loss.item(),
            "accuracy": (logits.argmax(-1) == batch[1]).float().mean().item(),
        }

    def time_limit(self, batch: Batch) -> float:
        start = time.perf_counter()
        self.limit.lock_step(batch)
        return time.perf_counter() - start

    def result(self, bytes_per_step: float) -> RunResult:
        step_seconds = statistics.median(self.seconds)
        limit_seconds = statistics.median(self.limit_seconds)
        return RunResult(
            workload=self.workload.name,
            link=self.config.link,
            ranks=self.ranks,
            method=self.config.method,
            step_seconds=step_seconds,
            limit_seconds=limit_seconds,
            ratio=step_seconds / limit_seconds,
            bytes_per_step=bytes_per_step,
            bits_per_parameter=statistics.fmean(self.bits),
            metric=self.metric(),
            metric_name=self.workload.metric_name,
            steps=self.config.steps,
        )

    def metric(self) -> float | None:
        """All ranks judge a share each; None in lock-step, whose ranks have no common model."""
        if not self.exchanges:
            return None
        share = self.workload.metric(self.model.module, self.rank, self.ranks)
        shares = torch.tensor(share, dtype=torch.float64)
        dist.all_reduce(shares)
        return Judged(*shares.tolist()).mean


def trained(config: RunConfig) -> RunResult:
    run = Run(config)
    return run.result(run.train())


def main(path: str) -> None:
    config = read_config(Path(path))
    with joined() as rank:
        result = trained(config)
        if rank == 0:
            result.save(Path(config.directory))


if __name__ == "__main__":
    main(sys.argv[1])
