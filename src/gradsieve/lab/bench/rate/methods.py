"""What is compared, each written as a line of text."""

from collections.abc import Sequence

from torch import Tensor

from gradsieve.lab.bench.rate.compressors import Compressor, PowerSGD, Rounded, TopK
from gradsieve.lab.bench.rate.local import LocalSteps
from gradsieve.lab.bench.rate.sieve import Sieve
from gradsieve.lab.bench.rate.training import Synchronous, Training
from gradsieve.lab.methods.local_words import read_local_settings
from gradsieve.lab.methods.sieve_words import read_settings
from gradsieve.lab.workloads.replica import Replica
from gradsieve.lab.workloads.workload import Workload

METHODS = (
    "dense, fp16, 8-bit, powersgd:RANK, topk:DENSITY, sieve[:POLICY=NUMBER,OPTION=VALUE...], "
    "local[:every=STEPS,OPTION=VALUE...]"
)


def require_method(method: str, workload: Workload) -> None:
    """Raise ValueError where no method is written like this, or none for this model."""
    replica = Replica(workload, workload.make_model(), workload.learning_rate, steps=1)
    make_training(method, replica, ranks=1)


def make_training(method: str, replica: Replica, ranks: int) -> Training:
    """Of ranks that begin as `replica`. Raises ValueError where no method is written like this."""
    name, *options = method.split(":")
    if name == "local" and len(options) <= 1:
        try:
            return LocalSteps(replica, ranks, read_local_settings("".join(options)))
        except ValueError as error:
            raise ValueError(f"{method!r} is no method: {error}") from error
    parameters = list(replica.model.parameters())
    return Synchronous(replica, make_compressor(method, parameters, ranks))


def make_compressor(method: str, parameters: Sequence[Tensor], ranks: int) -> Compressor:
    """Of gradients. Raises ValueError where no method is written like this."""
    name, *options = method.split(":")
    try:
        match name, options:
            case (("dense" | "fp16" | "8-bit"), []):
                return Rounded({"dense": 32, "fp16": 16, "8-bit": 8}[name])
            case "powersgd", [rank] if rank.isdecimal() and int(rank) > 0:
                return PowerSGD(parameters, ranks, int(rank))
            case "topk", [density] if 0 < float(density) <= 1:
                return TopK(parameters, ranks, float(density))
            case "sieve", ([] | [_]):
                return Sieve(parameters, ranks, read_settings("".join(options)))
    except ValueError as error:
        raise ValueError(f"{method!r} is no method: {error}") from error
    raise ValueError(f"{method!r} is no method; write one of {METHODS}")
