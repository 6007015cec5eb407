"""One rank of a run: ``torchrun -m gradsieve.lab.runs.train CONFIG``."""

import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from gradsieve.bucket.shards import local
from gradsieve.lab.link import read_counters
from gradsieve.lab.methods.apart import LockStep
from gradsieve.lab.methods.table import read_distributed
from gradsieve.lab.runs.config import RunConfig, RunResult, read_config
from gradsieve.lab.runs.rank import joined, sharers
from gradsieve.lab.workloads.replica import Replica
from gradsieve.lab.workloads.workload import Judged, load_workload
from gradsieve.recording import Recorder

Batch = tuple[Tensor, Tensor]
LIMIT_EVERY = 5
"""A lock-step step follows after so many steps, because machines drift."""
LIMITS_AT_THE_END = 4
"""The number of lock-step steps at the end of a run that had no time for one before."""


def train_step(
    replica: Replica,
    model: nn.Module,
    batch: Batch,
    meet: Callable[[], object] = lambda: None,
) -> tuple[Tensor, Tensor]:
    """Train `model`, which is the replica's or wraps it, on a batch; return logits and loss.

    `meet` is called between the backward pass and the update.
    """
    inputs, targets = batch
    replica.optimizer.zero_grad()
    logits = model(inputs)
    loss = F.cross_entropy(logits.flatten(0, -2), targets.flatten())
    loss.backward()
    meet()
    replica.update()
    return logits, loss


def lock_step(replica: Replica, batch: Batch) -> tuple[Tensor, Tensor]:
    """Train one step of the limit: nothing travels but one 4-byte all-reduce.

    It trains this rank's model apart from the others'.
    """
    met = torch.zeros(1, dtype=torch.float32, device="cpu")
    return train_step(replica, replica.model, batch, meet=lambda: dist.all_reduce(met))


class Trainer:
    """A rank's model and data, and what it measures in a run."""

    def __init__(self, config: RunConfig) -> None:
        self.config = config
        self.workload = load_workload(config.workload)
        self.rank, self.ranks = dist.get_rank(), dist.get_world_size()
        torch.manual_seed(config.seed)
        self.limit = self.replica(self.workload.make_model())
        model = self.workload.make_model()
        self.method = read_distributed(config.method)
        self.model, self.state, self.outer, self.average = self.method.prepare(model)
        self.trained = self.replica(model)
        # Dropout must differ between ranks; the weights above must not.
        torch.manual_seed(config.seed + 1 + self.rank)
        self.seconds: list[float] = []
        self.limit_seconds: list[float] = []
        self.alone_seconds: list[float] = []
        self.bits: list[float] = []
        self.frame_bytes = 0
        self.phase = self.method.phase
        self.measured_steps = (config.steps - config.warmup_steps) // self.phase * self.phase
        """The steps at the end of the run that are measured: whole phases of local steps."""
        self.numel = sum(local(parameter).numel() for parameter in self.model.parameters())
        """The elements that this rank holds."""

    def replica(self, model: nn.Module) -> Replica:
        return Replica(self.workload, model, self.config.learning_rate, self.config.steps)

    def train(self) -> float:
        """Train; return the bytes sent a step, by the interface's counter."""
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
        sent = 0.0
        first = config.steps - self.measured_steps
        for step in range(config.steps):
            record = self.step(data)
            after = read_counters(config.interface)
            record["sent_bytes"] = (after - before).sent_bytes / sharers(config.interface)
            bits = self.frame_bits()
            if bits is None:
                bits = record["bits_per_parameter"] = 8 * record["sent_bytes"] / self.numel
            before = after
            if step >= first:
                sent += record["sent_bytes"]
                self.seconds.append(float(record["seconds"]))
                self.bits.append(bits)
                # An exchange under way would take a share of the link.
                if step % LIMIT_EVERY == 0 and not self.is_exchanging:
                    self.limit_seconds.append(self.time_limit(next(data)))
                    before = read_counters(config.interface)
            recorder.log(**record)
        recorder.close()
        if self.outer is not None:
            self.outer.finish()
        if not self.limit_seconds:
            self.limit_seconds = [self.time_limit(next(data)) for _ in range(LIMITS_AT_THE_END)]
        return sent / self.measured_steps

    @property
    def is_exchanging(self) -> bool:
        return self.outer is not None and self.outer.is_exchanging

    @property
    def exchanges(self) -> int:
        """The number of exchanges begun so far."""
        return 0 if self.state is None else self.state.totals.steps + self.is_exchanging

    def frame_bits(self) -> float | None:
        """Return the bits a parameter since the last call; None if the method makes no frames."""
        if self.state is None:
            return None
        before, self.frame_bytes = self.frame_bytes, self.state.totals.frame_bytes
        return 8 * (self.frame_bytes - before) / self.numel

    def step(self, data: Iterator[Batch]) -> dict[str, float]:
        batch = next(data)
        was_exchanging, exchanges = self.is_exchanging, self.exchanges
        start = time.perf_counter()
        if isinstance(self.method, LockStep):
            logits, loss = lock_step(self.limit, batch)
        else:
            logits, loss = train_step(self.trained, self.model, batch, meet=self.average)
        if self.outer is not None:
            self.outer.step()
        seconds = time.perf_counter() - start
        if self.outer is not None and not was_exchanging and exchanges == self.exchanges:
            self.alone_seconds.append(seconds)
        return {
            "seconds": seconds,
            "loss": loss.item(),
            "accuracy": (logits.argmax(-1) == batch[1]).float().mean().item(),
        }

    def time_limit(self, batch: Batch) -> float:
        start = time.perf_counter()
        lock_step(self.limit, batch)
        return time.perf_counter() - start

    def result(self, bytes_per_step: float) -> RunResult:
        # The steps of a phase differ: one of them exchanges.
        phases = [
            statistics.fmean(self.seconds[start : start + self.phase])
            for start in range(0, self.measured_steps, self.phase)
        ]
        step_seconds = statistics.median(phases)
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
            alone_seconds=statistics.median(self.alone_seconds) if self.alone_seconds else None,
            ranks_per_node=self.config.ranks_per_node,
        )

    def metric(self) -> float | None:
        """Return the metric, of which each rank judges a share; None without a common model."""
        if not self.method.trains_together:
            return None
        # Ranks that hold one model together judge one share together. It then counts once for each,
        # in all nodes alike, and the mean stays.
        together = self.config.ranks_per_node if self.method.shards else 1
        share = self.workload.metric(
            self.trained.model, self.rank // together, self.ranks // together
        )
        shares = torch.tensor(share, dtype=torch.float64, device="cpu")
        dist.all_reduce(shares)
        return Judged(*shares.tolist()).mean


def trained(config: RunConfig) -> RunResult:
    run = Trainer(config)
    return run.result(run.train())


def main(path: str) -> None:
    config = read_config(Path(path))
    with joined() as rank:
        result = trained(config)
        if rank == 0:
            result.save(Path(config.directory))


if __name__ == "__main__":
    main(sys.argv[1])
