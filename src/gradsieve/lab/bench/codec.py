"""Bits, error and speed of frames on uniform positions and on recorded gradients."""

import math
import statistics
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gradsieve.codec import Section, decode_frame, encode_frame, pruned_section
from gradsieve.codec.blocks import one_block
from gradsieve.codec.inspect import inspect_section
from gradsieve.codec.positions import positions_room, write_positions
from gradsieve.lab.bench.select import seconds
from gradsieve.parameters.memory import row_numel
from gradsieve.sieve import Workspace, select

DENSITIES = (0.0005, 0.001, 0.01, 0.05, 0.15, 0.30, 0.60)
DENSER = (0.75, 0.85, 0.92)
"""More densities for the curve of rate and error; they take up to six bits a parameter."""
Curve = list[tuple[float, float]]
"""Pairs of bits a parameter and relative squared error."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CodecRow:
    """One frame that holds all large parameters of a source, each pruned to this density."""

    source: str
    density: float
    survivors: int
    uniform_entropy: float
    """The entropy of uniform positions at this density, in bits a survivor."""
    position_bits: float
    """What the positions take, in bits a survivor, with the counts of blocks."""
    position_ratio: float
    """position_bits / uniform_entropy."""
    unsplit_ratio: float
    """The same with one block a parameter; the difference is what clustering gains."""
    bits_per_parameter: float
    """The size of the whole frame."""
    frame_ratio: float
    """The frame's size over the entropy of uniform positions, signs and the levels' histogram."""
    relative_error: float
    """The squared error of what arrives over the squared norm of what was to be sent."""
    encode_rate: float
    """Survivors a second, one thread."""
    settle_rate: float
    """The same where the rounding error is written to the residual too."""
    decode_rate: float
    """Survivors a second, decoded and added to a bucket, one thread."""
    select_encode_ratio: float
    """Elements a second of select and encode together, over those of `add_`."""


@dataclass(frozen=True, slots=True)
class Selected:
    """The survivors of one parameter, and what a frame needs to know about it."""

    gradient: Tensor
    indices: NDArray[np.int32]
    values: NDArray[np.float32]
    threshold: float

    def section(self, residual: Tensor | None = None) -> Section:
        return pruned_section(
            self.indices,
            self.values,
            self.gradient.numel(),
            self.threshold,
            "levels",
            row=row_numel(self.gradient),
            residual=None if residual is None else residual.numpy(),
        )


def bench_codec(source: str, gradients: dict[str, Tensor], repeats: int) -> Iterator[CodecRow]:
    """Yield a row for each density, measured on one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for density in DENSITIES:
            yield bench_density(source, list(gradients.values()), density, repeats)
    finally:
        torch.set_num_threads(before)


def bench_density(source: str, gradients: list[Tensor], density: float, repeats: int) -> CodecRow:
    parameters = [select_share(gradient, density) for gradient in gradients]
    numel = sum(p.gradient.numel() for p in parameters)
    survivors = sum(p.indices.size for p in parameters)
    sections = [p.section() for p in parameters]
    frame = encode_frame(sections)
    uniform = sum(entropy(p.indices.size, p.gradient.numel()) for p in parameters)
    positions = position_bits(sections)
    unsplit = sum(one_block_bits(p.indices, p.gradient.numel()) for p in parameters)
    whole = uniform + sum(
        s.count + level_entropy(p, s) for p, s in zip(parameters, sections, strict=True)
    )
    encode, settle, decode, ratio = speeds(parameters, frame, repeats)
    return CodecRow(
        source=source,
        density=density,
        survivors=survivors,
        uniform_entropy=uniform / survivors,
        position_bits=positions / survivors,
        position_ratio=positions / uniform,
        unsplit_ratio=unsplit / uniform,
        bits_per_parameter=8 * frame.numel() / numel,
        frame_ratio=8 * frame.numel() / whole,
        relative_error=relative_error(parameters, frame),
        encode_rate=survivors / encode,
        settle_rate=survivors / settle,
        decode_rate=survivors / decode,
        select_encode_ratio=ratio,
    )


def rates_of_denser(gradients: dict[str, Tensor]) -> Curve:
    """Return bits and error of frames that are denser than those of the table."""
    numel = sum(gradient.numel() for gradient in gradients.values())
    curve = []
    for density in DENSER:
        parameters = [select_share(gradient, density) for gradient in gradients.values()]
        frame = encode_frame([parameter.section() for parameter in parameters])
        curve.append((8 * frame.numel() / numel, relative_error(parameters, frame)))
    return curve


def select_share(gradient: Tensor, density: float) -> Selected:
    flat = gradient.flatten()
    unsent = max(1, round(flat.numel() * (1 - density)))
    threshold = float(flat.abs().kthvalue(unsent).values)
    indices, values, _ = select(flat, torch.zeros_like(flat), threshold)
    return Selected(gradient, indices.numpy(), values.numpy(), threshold)


def entropy(count: int, numel: int) -> float:
    """Return the bits that tell which elements were sent, where all sets of this size are alike."""
    p = count / numel
    if p in (0, 1):
        return 0.0
    return -numel * (p * math.log2(p) + (1 - p) * math.log2(1 - p))


def level_entropy(parameter: Selected, section: Section) -> float:
    """Return the bits of all survivors' levels by the entropy of their histogram."""
    step = section.step
    levels = (np.abs(parameter.values.astype(np.float64)) - parameter.threshold) // step
    _, counts = np.unique(levels, return_counts=True)
    shares = counts / counts.sum()
    return float(-(counts * np.log2(shares)).sum())


def position_bits(sections: list[Section]) -> int:
    reports = [inspect_section(section) for section in sections]
    return 8 * sum(report.positions_bytes + report.counts_bytes for report in reports)


def one_block_bits(indices: NDArray[np.int32], numel: int) -> int:
    counts = np.full(1, indices.size, np.int32)
    edges = one_block(numel)
    room = np.empty(positions_room(edges, counts), np.uint8)
    start = room.ctypes.data
    return int(8 * (write_positions(indices, edges, counts, start) - start))


def relative_error(parameters: list[Selected], frame: Tensor) -> float:
    error = energy = 0.0
    for parameter, section in zip(parameters, decode_frame(frame).sections, strict=True):
        wanted = parameter.gradient.flatten()
        arrived = torch.zeros_like(wanted)
        section.add_to(arrived.numpy(), 1.0)
        error += float((wanted - arrived).double().square().sum())
        energy += float(wanted.double().square().sum())
    return error / energy


def speeds(
    parameters: list[Selected], frame: Tensor, repeats: int
) -> tuple[float, float, float, float]:
    """Return the median seconds of encode, of encode with the residual, and of decode and add.

    The last number is the ratio of select and encode together to `add_`."""
    buckets = [
        torch.zeros(p.gradient.numel(), dtype=torch.float32, device="cpu") for p in parameters
    ]
    residuals = [torch.zeros_like(bucket) for bucket in buckets]
    flats = [p.gradient.flatten() for p in parameters]
    workspace = Workspace()

    def encode() -> None:
        encode_frame([parameter.section() for parameter in parameters])

    def settle() -> None:
        pairs = zip(parameters, residuals, strict=True)
        encode_frame([parameter.section(left) for parameter, left in pairs])

    def decode() -> None:
        for section, bucket in zip(decode_frame(frame, own=True).sections, buckets, strict=True):
            section.add_to(bucket.numpy(), 0.5)

    def select_and_encode() -> None:
        workspace.clear()
        sections = []
        for parameter, flat, left in zip(parameters, flats, residuals, strict=True):
            indices, values, _ = select(flat, left, parameter.threshold, out=workspace)
            sent = Selected(
                parameter.gradient, indices.numpy(), values.numpy(), parameter.threshold
            )
            sections.append(sent.section(left))
        encode_frame(sections)

    def add() -> None:
        for flat, left in zip(flats, residuals, strict=True):
            left.add_(flat)

    def clear() -> None:
        for left in residuals:
            left.zero_()

    # The first two of each compile, size the workspace and touch its pages.
    alone = [
        statistics.median([seconds(run) for _ in range(repeats + 2)][2:])
        for run in (encode, settle, decode)
    ]
    ratios = []
    for _ in range(repeats + 2):
        clear()
        selecting = seconds(select_and_encode)
        clear()
        ratios.append(seconds(add) / selecting)
    return alone[0], alone[1], alone[2], statistics.median(ratios[2:])
