"""Plays the cases on ranks, and records what each rank computes and sends.

Gradients are made of numpy's random bits by sums and products alone, and learning rates are
powers of two: the results do not depend on how a processor's libraries round.
"""

import math
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from cases import CASES, Case
from digests import digest, digests_of, exact
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel as DDP

import gradsieve as gs

sys.path.append(str(Path(__file__).parent.parent / "shared"))
from ranks import run_ranks

SHAPES = {
    "bias": (64,),
    "matrix": (96, 64),
    "kernel": (16, 16, 3, 3),
    "wide": (256, 160),
    "norm": (100,),
    "tall": (200, 40),
    "vector": (3000,),
    "narrow": (60, 40),
}
"""`wide` is cut where ranks share the sum, `bias` and `norm` travel whole."""
LEARNING_RATE = 0.125
IN_ONE_SET = 6
"""Cases that one set of ranks plays, within the time that it has."""


class Leaves(nn.Module):
    """A loss whose gradient of each parameter is exactly what it is given."""

    def __init__(self) -> None:
        super().__init__()
        for place, (name, shape) in enumerate(SHAPES.items()):
            start = numbers(shape, (7, place))
            if name == "kernel":
                start = start.to(memory_format=torch.channels_last)
            if name == "narrow":
                start = start.to(torch.bfloat16)
            setattr(self, name, nn.Parameter(start))
        self.register_buffer("statistic", torch.zeros(5))

    def forward(self, gradients: dict[str, Tensor], statistic: Tensor) -> Tensor:
        self.statistic.add_(statistic)
        products = [
            (parameter * gradients[name].to(parameter.dtype)).sum().float()
            for name, parameter in self.named_parameters()
            if name in gradients
        ]
        return torch.stack(products).sum()


def numbers(shape: Sequence[int], seed: Sequence[int]) -> Tensor:
    """Small ones mostly, large ones seldom, in rows of different scales."""
    # Raw bits: only their stream is promised to be the same in every numpy.
    bits, numel = np.random.PCG64(seed), math.prod(shape)
    uniform = (bits.random_raw(2 * numel) >> 40).astype(np.float32) / np.float32(2**24)
    triangular = (uniform[:numel] - uniform[numel:]).reshape(shape)
    exponents = (bits.random_raw(shape[0]) % 7).astype(np.int32) - 3
    rows = np.ldexp(np.float32(1), exponents).reshape(-1, *(1 for _ in shape[1:]))
    return torch.from_numpy(triangular * triangular * triangular * rows)


def gradients_of(step: int, rank: int) -> dict[str, Tensor]:
    return {
        name: numbers(shape, (step, rank, place))
        for place, (name, shape) in enumerate(SHAPES.items())
    }


class Scaler:
    """As ``torch.amp.GradScaler``, of which this is what a state reads."""

    def __init__(self) -> None:
        self.scale = 256.0

    def get_scale(self) -> float:
        return self.scale


@contextmanager
def frames_recorded() -> Iterator[list[str]]:
    """The size and the digest of each payload of bytes that the ranks send each other."""
    frames: list[str] = []
    original = dist.all_to_all_single

    def recording(output: Tensor, input: Tensor, *args: Any, **options: Any) -> Any:
        if input.dtype == torch.uint8:
            frames.append(f"{input.numel()} bytes {digest(input)}")
        return original(output, input, *args, **options)

    dist.all_to_all_single = recording
    try:
        yield frames
    finally:
        dist.all_to_all_single = original


def tensors_of(model: nn.Module) -> dict[str, str]:
    named = [*model.named_parameters(), *model.named_buffers()]
    return {name: digest(tensor) for name, tensor in named}


def averages_of(model: nn.Module) -> dict[str, str]:
    return {name: digest(parameter.grad) for name, parameter in model.named_parameters()}


def play_lock_step(case: Case) -> dict[str, Any]:
    leaves, rank = Leaves(), dist.get_rank()
    model = DDP(leaves, bucket_cap_mb=0.05, find_unused_parameters=case.is_partly_unused)
    scaler = Scaler() if case.is_scaled else None
    if case.is_by_hand:
        state = gs.SieveState(**case.settings)
        model.register_comm_hook(state, gs.sieve_hook)
    else:
        state = gs.attach(model, scaler=scaler, **case.settings)
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)
    steps = []
    for step in range(case.steps):
        gradients = gradients_of(step, rank)
        if case.is_partly_unused and (step == 5 or (step, rank) == (3, 1)):
            del gradients["tall"]
        if case.is_scaled and (step, rank) == (3, 1):
            gradients["matrix"][5, 7] = torch.inf
        optimizer.zero_grad()
        loss = model(gradients, torch.full((5,), float(rank + step)))
        (loss if scaler is None else loss * scaler.scale).backward()
        averages = averages_of(leaves)
        if scaler is not None:
            take_scale_off(scaler, optimizer)
        else:
            optimizer.step()
        steps.append(
            {
                "averages": averages,
                "parameters": tensors_of(leaves),
                "record": exact(asdict(state.last)),
            }
        )
    return {"steps": steps, "end": end_of(state) | {"state": digests_of(state.state_dict())}}


def take_scale_off(scaler: Scaler, optimizer: torch.optim.Optimizer) -> None:
    """Step without it; after a gradient that is not finite lower it, and step not at all."""
    [group] = optimizer.param_groups
    gradients = [parameter.grad for parameter in group["params"]]
    if all(bool(gradient.isfinite().all()) for gradient in gradients):
        for gradient in gradients:
            gradient.div_(scaler.scale)
        optimizer.step()
    else:
        scaler.scale /= 2


def play_local(case: Case) -> dict[str, Any]:
    leaves, rank = Leaves(), dist.get_rank()
    outer = gs.OuterSync(leaves, **case.settings)
    records: list[gs.OuterRecord] = []
    outer.on_step = records.append
    optimizer = torch.optim.SGD(leaves.parameters(), lr=LEARNING_RATE)
    steps = []
    for step in range(case.steps):
        optimizer.zero_grad()
        leaves(gradients_of(step, rank), torch.full((5,), float(rank + step))).backward()
        optimizer.step()
        outer.step()
        told = [exact(asdict(record)) for record in records]
        steps.append({"parameters": tensors_of(leaves), "records": told})
        records.clear()
    saved = digests_of(outer.state_dict())
    outer.finish()
    told = [exact(asdict(record)) for record in records]
    finished = {"parameters": tensors_of(leaves), "records": told}
    return {"steps": [*steps, finished], "end": end_of(outer.state) | {"state": saved}}


def end_of(state: gs.SieveState) -> dict[str, Any]:
    return {
        "residuals": digests_of(state.residuals),
        "owned_residuals": digests_of(state.owned_residuals),
        "totals": exact(asdict(state.totals)),
    }


def play(name: str) -> dict[str, Any]:
    case = CASES[name]
    try:
        with frames_recorded() as frames:
            found = play_local(case) if case.is_local else play_lock_step(case)
    except Exception as error:
        raise RuntimeError(f"the case {name!r} cannot be played") from error
    if bool(frames) != case.has_frames:
        raise RuntimeError(f"the case {name!r} has sent {len(frames)} frames")
    return found | {"frames": frames}


def play_here(names: Sequence[str], threads: int) -> list[dict[str, Any]]:
    """On one rank."""
    torch.set_num_threads(threads)
    return [play(name) for name in names]


def play_all(
    cases: Sequence[Case], threads: int = 1, in_one_set: int = IN_ONE_SET
) -> dict[str, list[dict[str, Any]]]:
    """For each case what each of its ranks has recorded."""
    recorded = {}
    for ranks in sorted({case.ranks for case in cases}):
        names = [case.name for case in cases if case.ranks == ranks]
        for first in range(0, len(names), in_one_set):
            some = names[first : first + in_one_set]
            by_rank = run_ranks(ranks, play_here, some, threads)
            if None in by_rank:
                raise RuntimeError(f"rank {by_rank.index(None)} of {ranks} died in one of {some}")
            recorded |= dict(zip(some, map(list, zip(*by_rank, strict=True)), strict=True))
    return {case.name: recorded[case.name] for case in cases}
