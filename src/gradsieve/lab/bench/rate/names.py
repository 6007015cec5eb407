"""What pictures call workloads, optimizers and methods, and the colours of methods."""

from collections.abc import Iterable
from itertools import cycle

from gradsieve.lab.bench.rate.rows import RateRow
from gradsieve.lab.methods.local import Local
from gradsieve.lab.methods.table import read_method
from gradsieve.lab.workloads.workload import load_workload

DENSE = "dense"
GRADSIEVE = "gradsieve"
HOOK, SIEVED_LOCAL = "gradsieve, every step", "gradsieve, local steps"
DILOCO, POST_LOCAL, MEAN_LOCAL = "DiLoCo", "post-local SGD", "local SGD"
MULOCO, FEW_BITS = "MuLoCo", "DiLoCo in few bits"
NAMES = {
    "sieve": HOOK,
    "powersgd": "PowerSGD",
    "topk": "top-k",
    "post-local": POST_LOCAL,
    "sparseloco": "SparseLoCo",
    "muloco": MULOCO,
    "demo": "DeMo",
}
"""Methods that the picture calls by another name than the one they are written by."""
COLOURS = {
    GRADSIEVE: "#1f5fbf",
    HOOK: "#1f5fbf",
    SIEVED_LOCAL: "#12908a",
    "PowerSGD": "#c8452f",
    "top-k": "#8a5a2b",
    "fp16": "#7a7a7a",
    "8-bit": "#a0468c",
    DILOCO: "#8256b0",
    POST_LOCAL: "#c07d12",
    MEAN_LOCAL: "#a8952a",
    "SparseLoCo": "#d1477a",
    MULOCO: "#5c7f1f",
    FEW_BITS: "#5c7f1f",
    "DeMo": "#b06a2c",
}
OTHER_COLOURS = ("#3f7f3f", "#b0508a", "#40708f", "#9f6f4f")
"""Taken in turn by methods without a colour of their own."""
TASKS = {
    "mnist_cnn": "A convolutional network on MNIST",
    "mlp": "A dense network on MNIST",
    "gpt": "A transformer of 10 M parameters",
    "gpt-small": "A transformer of 1 M parameters",
}
UNITS = {"held-out loss": "nats per byte", "test accuracy": "share of the images"}
OPTIMIZERS = {"adam": "Adam", "adamw": "AdamW", "muon": "Muon"}
SHAPES = {"muon": "triangle-up"}
"""The marks of points by the optimizer; others are circles."""


def method_name(text: str) -> str | None:
    """Return what the picture calls a method, whatever its options.

    None for variants that were tried and left the code (`sieve-model`, say), and for residuals that
    fade: neither can be trained with.
    """
    try:
        method = read_method(text)
    except ValueError:
        return None
    kind, _, options = text.partition(":")
    if not isinstance(method, Local):
        return NAMES.get(kind, kind)
    settings = method.settings
    if settings.residual_decay != 1:
        return None
    if "exchange=dense" not in options.split(","):
        return SIEVED_LOCAL
    if settings.lr != 1 or settings.momentum != 0:
        return DILOCO
    return POST_LOCAL if settings.start_step else MEAN_LOCAL


def drawn_name(row: RateRow, *, together: bool) -> str | None:
    """Return the name of a row's points: the method's, and the optimizer's if it is not the own.

    Args:
        together: whether all of gradsieve is one method.
    """
    name = method_name(row.method)
    optimizer = load_workload(row.workload).optimizer
    if together and name in (HOOK, SIEVED_LOCAL):
        name = GRADSIEVE
    if name == MULOCO:
        # Without Muon it is DiLoCo with quantized pseudo-gradients.
        return MULOCO if optimizer == "muon" else FEW_BITS
    if name is None or ":" not in row.workload:
        return name
    return f"{name}, {OPTIMIZERS[optimizer]}"


def shape_of(row: RateRow) -> str:
    return SHAPES.get(load_workload(row.workload).optimizer, "circle")


def colours_of(names: Iterable[str]) -> list[str]:
    """Return a colour for each name; a method has one colour with every optimizer."""
    others = cycle(OTHER_COLOURS)
    return [
        COLOURS.get(name) or COLOURS.get(without_optimizer(name)) or next(others) for name in names
    ]


def without_optimizer(name: str) -> str:
    for optimizer in OPTIMIZERS.values():
        name = name.removesuffix(f", {optimizer}")
    return name
