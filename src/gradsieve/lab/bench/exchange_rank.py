"""A rank of `gradsieve bench exchange`: ``torchrun -m gradsieve.lab.bench.exchange_rank ORDER``."""

import statistics
import sys
import time

import torch
import torch.distributed as dist
from torch import nn

from gradsieve.control.thresholds import Density
from gradsieve.lab.bench.exchange import REPEATS, WARM_UP, ExchangeOrder, ExchangeRow
from gradsieve.lab.link import read_counters
from gradsieve.lab.runs.order import answer_order
from gradsieve.lab.runs.rank import sharers
from gradsieve.state import SieveState
from gradsieve.topology import TOPOLOGIES, FrameTopology


def exchange_again_and_again(order: ExchangeOrder) -> ExchangeRow:
    state = SieveState(threshold=Density(order.density), exchange=order.exchange)
    engine, sieve, topology = state.engine, state.sieve, TOPOLOGIES[order.exchange]
    assert isinstance(topology, FrameTopology)
    parameter = torch.empty(order.numel // 1024, 1024, dtype=torch.float32, device="cpu")
    state.bind(nn.ParameterList([parameter]))
    engine.groups.agree(order.exchange)
    topology.connect(engine.groups)
    plan = sieve.plan(topology, list(sieve.parameters), *topology.place(engine.groups))
    generator = torch.Generator().manual_seed(dist.get_rank())
    numel = parameter.numel()
    gradient = torch.randn(numel, generator=generator, dtype=torch.float32, device="cpu")
    rows: list[tuple[float, float, int, int]] = []
    for _ in range(WARM_UP + REPEATS):
        buffer = gradient.clone()
        sieve.begin_step()
        engine.reports.begin_step()
        dist.barrier()
        before, start = read_counters(order.interface), time.perf_counter()
        engine.exchange_frames(topology, plan, buffer)
        seconds = time.perf_counter() - start
        dist.barrier()
        sent = (read_counters(order.interface) - before).sent_bytes
        clock = sieve.step.clock
        transfer = clock.seconds["exchange"] - engine.reports.notes.seconds
        rows.append((seconds, transfer, clock.frame_bytes, sent))
        sieve.commit()
    medians = [statistics.median(column) for column in zip(*rows[WARM_UP:], strict=True)]
    return ExchangeRow(
        exchange=order.exchange,
        link=order.link,
        ranks=order.ranks,
        numel=numel,
        density=order.density,
        seconds=medians[0],
        transfer_seconds=medians[1],
        frame_bytes=medians[2],
        sent_bytes=medians[3] / sharers(order.interface),
    )


if __name__ == "__main__":
    answer_order(sys.argv[1], lambda order: exchange_again_and_again(ExchangeOrder(**order)))
