"""What one process makes of the same numbers: run by test_same_bits.py, prints JSON.

    process.py FOLDER (cold | warm | alone)

"cold" trains two ranks to the end, and saves half way; "warm" goes on from what was saved; "alone"
trains none, and compiles nothing for it.
"""

import hashlib
import json
import multiprocessing
import sys
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel as DDP

import gradsieve as gs
from gradsieve.bucket.warm_up import warm_up
from gradsieve.codec import VALUES, decode_frame, encode_frame, pruned_section, whole_section
from gradsieve.recording.counting import histogram_of
from gradsieve.rotation import Rotation

SIZES = (1, 63, 4097, 70_000, 600_001)
DENSITIES = (1.0, 0.6, 0.1, 0.01, 0.001)
STEPS, SAVED_AFTER = 6, 3


def digest(*things):
    total = hashlib.sha256()
    for thing in things:
        array = thing.numpy() if isinstance(thing, torch.Tensor) else np.asarray(thing)
        total.update(f"{array.dtype}{array.shape}".encode() + array.tobytes())
    return total.hexdigest()[:12]


def numbers(size, seed):
    """Neither even nor alone: rows of different scales, as a layer's gradients have."""
    generator = np.random.default_rng(seed)
    scales = np.repeat(generator.lognormal(0, 1.5, size // 300 + 1), 300)[:size]
    return (generator.laplace(size=size) * scales).astype(np.float32)


def moments(found):
    return [found.numel, found.survivors, found.nonfinite, found.sum, found.unsent_sum,
            found.unsent_square_sum, found.survivor_sum, found.survivor_square_sum,
            found.gradient_square_sum, found.largest]  # fmt: skip


def selected(size, density):
    values, residual = torch.from_numpy(numbers(size, size)), torch.from_numpy(numbers(size, 1))
    threshold = float(np.quantile(np.abs((values + residual).numpy()), 1 - density))
    answers = {}
    for threads in (1, 2):
        torch.set_num_threads(threads)
        left = residual.clone()
        found = gs.select(values, left, threshold)
        answers[threads] = (*found, left, gs.measure(values, residual))
    torch.set_num_threads(1)
    return threshold, answers


def frames():
    """Digests of frames, of what is left behind, of what they add, and of moments."""
    results = {}
    for size in SIZES:
        for density in DENSITIES:
            threshold, answers = selected(size, density)
            for threads, (indices, values, found, left, measured) in answers.items():
                key = f"{size} {density} {threads} threads"
                results[f"{key} select"] = digest(indices, values, left, moments(found))
                results[f"{key} measure"] = digest(moments(measured))
            positions, survivors = answers[1][0].numpy(), answers[1][1].numpy()
            if not positions.size:
                continue
            for mode in VALUES:
                for row in (0, 300):
                    left = np.zeros(size, np.float32)
                    section = pruned_section(
                        positions, survivors, size, threshold, mode, row=row, residual=left
                    )
                    frame = encode_frame([section])
                    total = np.full(size, 0.1, np.float32)
                    decode_frame(frame).sections[0].add_to(total, 1 / 3)
                    key = f"{size} {density} {mode} {row}"
                    results[key] = digest(frame)
                    results[f"{key} rest"] = digest(left, section.squared_remainder)
                    results[f"{key} sum"] = digest(total)
        for mode in VALUES:
            whole = encode_frame([whole_section(numbers(size, 5), mode)])
            results[f"{size} whole {mode}"] = digest(whole)
    return results


def evenly_spaced():
    """Every block length promises the same: what is chosen must not be a library's last place."""
    results = {}
    for every in (2, 3, 4, 7, 10):
        for row in (128, 129, 300, 384, 1000):
            positions = np.arange(0, 200_000, every, dtype=np.int32)
            values, left = numbers(positions.size, 3), np.zeros(200_000, np.float32)
            section = pruned_section(
                positions, values, left.size, 0.0, "levels", row=row, residual=left
            )
            results[f"every {every} rows of {row}"] = digest(encode_frame([section]))
    return results


def wide_moments():
    """Magnitudes of six decades: float64 has to round their sums, and the order tells."""
    results, size = {}, 600_001
    decades = 10.0 ** np.linspace(-3, 3, size)
    values = torch.from_numpy((numbers(size, 7) * decades).astype(np.float32))
    for threshold in (0.0, 1.0, 1e9):
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found = gs.select(values, torch.zeros(size, dtype=torch.float32), threshold)[2]
            results[f"wide {threshold} {threads} threads"] = digest(moments(found))
    torch.set_num_threads(1)
    return results


def extreme_moments():
    """Squares that float32 does not hold are summed elsewhere."""
    results = {}
    for scale in (1e-25, 1e25):
        tensor = torch.from_numpy(np.clip(numbers(100_001, 9), -9, 9)) * scale
        results[f"moments at {scale}"] = digest(moments(gs.measure(tensor)))
    return results


def rotated():
    rotation, results = Rotation(70, 90, 64, torch.device("cpu")), {}
    for step in range(8):
        flat = torch.from_numpy(numbers(70 * 90, step))
        rotation.learn(flat.clone())
        if rotation.is_due:
            rotation.turn([])
        rotation.restore(flat)
        results[f"rotation {step}"] = digest(flat, *(basis.vectors for basis in rotation.bases))
    return results


def histograms():
    counted = histogram_of(torch.from_numpy(numbers(100_001, 4)))
    return {"histogram": digest(counted.counts, counted.total, counted.square_sum)}


def train(rank, folder, resumes, pipe):
    torch.set_num_threads(1)
    store = dist.FileStore(str(folder / f"store-{resumes}"), 2)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
    torch.manual_seed(1)
    model = DDP(nn.Sequential(nn.Linear(64, 96), nn.Tanh(), nn.Linear(96, 64)))
    state = gs.attach(model, threshold=gs.Sigma(1.5), exchange="gather")
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    things, file, first = (model, optimizer, state), folder / f"saved-{rank}.pt", 0
    if resumes:
        for thing, saved in zip(things, torch.load(file, weights_only=True), strict=True):
            thing.load_state_dict(saved)
        first = SAVED_AFTER
    for step in range(first, STEPS):
        if step == SAVED_AFTER and not resumes:
            torch.save([thing.state_dict() for thing in things], file)
        generator = torch.Generator().manual_seed(10 * step + rank)
        optimizer.zero_grad()
        (model(torch.randn(32, 64, generator=generator)) ** 2).mean().backward()
        optimizer.step()
    weights = [parameter.detach() for parameter in model.parameters()]
    pipe.send(digest(*weights, *state.residuals.values()))
    pipe.close()


def trained(folder, *, resumes):
    """Two ranks, forked with the code that this process has compiled, or loaded."""
    context, pipes, ranks = multiprocessing.get_context("fork"), [], []
    for rank in range(2):
        receiver, sender = context.Pipe(duplex=False)
        ranks.append(context.Process(target=train, args=(rank, folder, resumes, sender)))
        ranks[-1].start()
        pipes.append(receiver)
    results = {f"rank {rank}": pipe.recv() for rank, pipe in enumerate(pipes)}
    for rank in ranks:
        rank.join()
    return results


if __name__ == "__main__":
    folder, start = Path(sys.argv[1]), sys.argv[2]
    torch.set_num_threads(1)
    results = {}
    if start != "alone":
        warm_up("levels", True, False)
        results |= trained(folder, resumes=start == "warm")
    for part in (frames, evenly_spaced, wide_moments, extreme_moments, rotated, histograms):
        results |= part()
    print(json.dumps(results))
