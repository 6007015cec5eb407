"""A directory as training writes it, without training."""

import json
import math
from dataclasses import asdict

import torch

from gradsieve.lab.runs.config import RunConfig, RunResult
from gradsieve.recording.counting import histogram_of
from gradsieve.recording.files import HISTOGRAMS, RECORDS, RecordFile
from gradsieve.telemetry.record import StepRecord

LAYERS = [
    f"{layer}.{kind}" for layer in ("one", "two", "three", "four") for kind in ("weight", "bias")
]
NUMEL = 1000


def step_record(step, layers=LAYERS, density=0.05):
    return StepRecord(
        step=step,
        exchange="gather",
        reason="",
        thresholds={name: 0.1 * (n + 1) / (step + 1) for n, name in enumerate(layers)},
        densities={name: density * (1 + 0.5 * math.sin(step + n)) for n, name in enumerate(layers)},
        density=density,
        frame_bytes=500,
        bits_per_parameter=0.5,
        add_seconds=0.0,
        rotate_seconds=0.0,
        select_seconds=0.002,
        encode_seconds=0.001,
        exchange_seconds=0.01,
        decode_seconds=0.001,
        exposed_seconds=0.004,
        residual_norm=1 + step / 100,
        plain=False,
        nonfinite=0,
    )


def write_run(
    directory,
    title,
    *,
    method="sieve",
    steps=60,
    layers=LAYERS,
    histograms_every=20,
    seed=0,
    metric=0.9,
):
    """With a configuration and a result where it has a method, as demos and studies have."""
    about = {
        "started": float(seed),
        "cores": 2,
        "ranks": 2,
        "parameters": dict.fromkeys(layers, NUMEL),
        "about": {"title": title},
    }
    records = RecordFile(directory / RECORDS, about)
    histograms = RecordFile(directory / HISTOGRAMS, about)
    generator = torch.Generator().manual_seed(seed)
    for step in range(steps):
        line = {"step": step} if method == "ddp" else asdict(step_record(step, layers))
        line |= {"loss": 2 / (1 + step / 10), "accuracy": 1 - 0.9 / (1 + step / 10)}
        line |= {"seconds": 0.1, "sent_bytes": 600.0}
        records.write(line)
        if histograms_every and step % histograms_every == 0:
            kinds = (
                ("weight", "gradient") if method == "ddp" else ("weight", "gradient", "residual")
            )
            counted = {
                kind: {
                    name: histogram_of(
                        torch.randn(NUMEL, generator=generator) * (n + 1) / (step + 1)
                    ).as_json()
                    for n, name in enumerate(layers)
                }
                for kind in kinds
            }
            histograms.write({"step": step, "ranks": 2, "histograms": counted})
    records.close()
    histograms.close()
    if method:
        write_outcome(directory, title, method, steps, seed, metric)


def write_outcome(directory, title, method, steps, seed, metric):
    link = "2 ranks, 1 Gbit/s each way (tbf)"
    RunConfig(
        workload="mnist_cnn",
        method=method,
        ranks=2,
        steps=steps,
        directory=str(directory),
        interface="eth0",
        link=link,
        learning_rate=1e-3,
        seed=seed,
        title=title,
    ).save()
    slow = method == "ddp"
    RunResult(
        workload="mnist_cnn",
        link=link,
        ranks=2,
        method=method,
        step_seconds=0.3 if slow else 0.11,
        limit_seconds=0.1,
        ratio=3.0 if slow else 1.1,
        bytes_per_step=1e6 if slow else 1e4,
        bits_per_parameter=32.0 if slow else 0.5,
        metric=metric,
        metric_name="test accuracy",
        steps=steps,
    ).save(directory)


def write_rows(path):
    row = {"workload": "gpt", "link": "1 Gbit/s", "method": "ddp", "ratio": 1.5}
    row |= {"metric": None, "bits_per_parameter": 32.0}
    path.write_text(json.dumps([row, row | {"method": "sieve", "ratio": 1.1}]))
