"""One of two ranks that measure the machine: ``torchrun -m gradsieve.lab.plan.calibrate ORDER``."""

import statistics
import sys
import time
from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from gradsieve.bucket.overhead import coding_overhead
from gradsieve.bucket.rank_sieve import RankSieve
from gradsieve.codec import decode_frame, encode_frame, pruned_section
from gradsieve.config import SieveConfig
from gradsieve.control.thresholds import Fixed
from gradsieve.exchange import FrameExchange, group_of_its_own
from gradsieve.lab.plan.bare_step import BareStep, buckets_of
from gradsieve.lab.plan.machine import Machine, MachineOrder, Measured
from gradsieve.lab.runs.order import answer_order
from gradsieve.lab.workloads.workload import load_workload
from gradsieve.runtime.torch_private import GradBucket
from gradsieve.sieve import Workspace, select
from gradsieve.topology import GATHER

NUMEL = 2**22
DENSITY = 0.01
SMALL = 2**14
ROW = 1024
REPEATS, WARM_UP = 9, 3


def seconds_of(
    work: Callable[[], object],
    clock: Callable[[], float],
    prepare: Callable[[], object] = lambda: None,
) -> float:
    """Return the median of some runs; `prepare` is called before each and not timed."""
    taken = []
    for _ in range(REPEATS):
        prepare()
        start = clock()
        work()
        taken.append(clock() - start)
    return statistics.median(taken)


def select_seconds(gradient: Tensor) -> float:
    bucket = torch.empty(NUMEL, dtype=torch.float32, device="cpu")
    residual, threshold = torch.zeros(NUMEL, dtype=torch.float32, device="cpu"), 2.576
    workspace = Workspace()

    def prepare() -> None:
        bucket.copy_(gradient)
        residual.zero_()
        workspace.clear()

    def work() -> None:
        select(bucket, residual, threshold, out=workspace, clear=True)

    return seconds_of(work, time.thread_time, prepare) / NUMEL


def code_seconds(gradient: Tensor) -> tuple[float, float]:
    """Return the seconds of a frame's byte, to make it and to read it."""
    largest = gradient.abs().topk(int(DENSITY * NUMEL)).indices.sort().values
    threshold = float(gradient[largest].abs().min())
    indices, values = largest.int().numpy(), gradient[largest].numpy()
    total = torch.zeros(NUMEL, dtype=torch.float32, device="cpu").numpy()
    residual = torch.zeros(NUMEL, dtype=torch.float32, device="cpu").numpy()

    def make() -> Tensor:
        return encode_frame(
            [
                pruned_section(
                    indices, values, NUMEL, threshold, "levels", row=ROW, residual=residual
                )
            ]
        )

    frame = make()
    made = seconds_of(make, time.thread_time)
    read = seconds_of(lambda: decode_frame(frame).sections[0].add_to(total, 0.5), time.thread_time)
    return made / frame.numel(), read / frame.numel()


def section_seconds() -> float:
    count = 50
    sieve = RankSieve(SieveConfig(threshold=Fixed(1.0)))
    parameters = [torch.empty(SMALL, dtype=torch.float32, device="cpu") for _ in range(count)]
    sieve.bind(nn.ParameterList(parameters))
    plan = sieve.plan(GATHER, list(sieve.parameters), *GATHER.place_of(0, 2))
    return coding_overhead(plan, "levels", 2) / count


def collective_seconds() -> float:
    exchange = FrameExchange(group_of_its_own(dist.group.WORLD))  # type: ignore[arg-type]
    frame = torch.zeros(1000, dtype=torch.uint8, device="cpu")

    def work() -> None:
        for _ in range(50):
            exchange.to_all(frame)

    return seconds_of(work, time.process_time) / 50


def reduce_seconds() -> float:
    buffer = torch.zeros(NUMEL, dtype=torch.float32, device="cpu")
    return seconds_of(lambda: dist.all_reduce(buffer), time.process_time) / (4 * NUMEL)


def halve_seconds(gradient: Tensor) -> float:
    return seconds_of(lambda: gradient.copy_(gradient.half()), time.thread_time) / NUMEL


def train_alone(name: str) -> BareStep:
    """Time a workload's steps in lock-step, and within DDP whose hook exchanges nothing."""
    workload = load_workload(name)
    model = workload.make_model()
    optimizer = workload.make_optimizer(model, workload.learning_rate)
    wrapped = DistributedDataParallel(model, gradient_as_bucket_view=True)
    wrapped.register_comm_hook(None, exchange_nothing)
    data = workload.batches(dist.get_rank(), dist.get_world_size(), 0)

    def step(module: nn.Module) -> tuple[float, float]:
        inputs, targets = next(data)
        start = time.perf_counter()
        optimizer.zero_grad()
        loss = F.cross_entropy(module(inputs).flatten(0, -2), targets.flatten())
        half_way = time.perf_counter()
        loss.backward()  # type: ignore[no-untyped-call]
        backward = time.perf_counter() - half_way
        dist.all_reduce(torch.zeros(1, dtype=torch.float32, device="cpu"))
        optimizer.step()
        return time.perf_counter() - start, backward

    alone, alike = [], []
    for number in range(WARM_UP + REPEATS):
        pair = step(model), step(wrapped)
        if number >= WARM_UP:
            alone.append(pair[0])
            alike.append(pair[1])
    seconds = statistics.median(s for s, _ in alone)
    return BareStep(
        step=seconds,
        backward=statistics.median(b for _, b in alone),
        wrapper=max(0.0, statistics.median(s for s, _ in alike) - seconds),
        buckets=buckets_of(parameter.numel() for parameter in model.parameters()),
    )


def exchange_nothing(state: None, bucket: GradBucket) -> torch.futures.Future[Tensor]:
    future: torch.futures.Future[Tensor] = torch.futures.Future()
    future.set_result(bucket.buffer())
    return future


def measure_machine() -> Machine:
    gradient = torch.randn(
        NUMEL, generator=torch.Generator().manual_seed(0), dtype=torch.float32, device="cpu"
    )
    made, read = code_seconds(gradient)
    return Machine(
        section=section_seconds(),
        make=made,
        read=read,
        collective=collective_seconds(),
        reduce=reduce_seconds(),
        halve=halve_seconds(gradient.clone()),
        select=select_seconds(gradient),
    )


def measured(order: MachineOrder) -> Measured:
    machine = measure_machine()
    return Measured(machine, {name: train_alone(name) for name in order.workloads})


if __name__ == "__main__":
    answer_order(sys.argv[1], lambda order: measured(MachineOrder(**order)))
