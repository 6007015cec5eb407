"""A rank of `gradsieve bench exchange`: ``torchrun -m gradsieve.lab.bench.exchange_rank ORDER``."""

import statistics
import sys
import time

import torch
import torch.distributed as dist
from torch import nn

from gradsieve.delivery import deliver
from gradsieve.lab.bench.exchange import REPEATS, WARM_UP, ExchangeOrder, ExchangeRow
from gradsieve.lab.link import read_counters
from gradsieve.lab.runs.order import answer_order
from gradsieve.lab.runs.rank import sharers
from gradsieve.state import SieveState
from gradsieve.tally import Tally
from gradsieve.thresholds import Density


def exchange_again_and_again(order: ExchangeOrder) -> ExchangeRow:
    state = SieveState(Density(order.density), exchange=order.exchange)
    parameter = torch.empty(order.numel // 1024, 1024, dtype=torch.float32, device="cpu")
    state.bind(nn.ParameterList([parameter]))
    parameters = list(state.registry)
    numel = parameters[0].numel
    generator = torch.Generator().manual_seed(dist.get_rank())
    gradient = torch.randn(numel, generator=generator, dtype=torch.float32, device="cpu")
    plan, notes = state.plan(parameters), state.route.accounts.notes
    rows: list[tuple[float, float, int, int]] = []
    for _ in range(WARM_UP + REPEATS):
        buffer = gradient.clone()
        state.workspace.clear()
        state.tally, notes.seconds = Tally(), 0.0
        state.changes.keep()
        dist.barrier()
        before, start = read_counters(order.interface), time.perf_counter()
        deliver(state, plan, buffer)
        seconds = time.perf_counter() - start
        dist.barrier()
        sent = (read_counters(order.interface) - before).sent_bytes
        transfer = state.tally.seconds["exchange"] - notes.seconds
        rows.append((seconds, transfer, state.tally.all_frame_bytes, sent))
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
