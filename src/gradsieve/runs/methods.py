"""The ways of exchanging gradients that runs compare, each written as a line of text."""

from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import fp16_compress_hook
from torch.distributed.algorithms.ddp_comm_hooks.powerSGD_hook import PowerSGDState, powerSGD_hook
from torch.nn.parallel import DistributedDataParallel

from gradsieve.hook import attach
from gradsieve.settings import read_settings
from gradsieve.state import SieveState

METHODS = "ddp, fp16, powersgd:RANK, lock-step, sieve[:POLICY=NUMBER,OPTION=VALUE...]"
LOCK_STEP = "lock-step"
"""No gradient travels but one 4-byte all-reduce a step."""
ONE_BUCKET_MB = 2**20


def require_method(method: str) -> None:
    """Raise ValueError where no method is written like this."""
    name, *options = method.split(":")
    try:
        match name, options:
            case (("ddp" | "fp16" | "lock-step"), []):
                return
            case "powersgd", [rank] if rank.isdecimal() and int(rank) > 0:
                return
            case "sieve", ([] | [_]):
                read_settings("".join(options))
                return
    except ValueError as error:
        raise ValueError(f"{method!r} is no method: {error}") from error
    raise ValueError(f"{method!r} is no method; write one of {METHODS}")


def bucket_cap_mb(method: str) -> float | None:
    """PowerSGD's hook issues collectives in callbacks: with two buckets on Gloo it aborts."""
    return ONE_BUCKET_MB if method.startswith("powersgd") else None


def register(method: str, model: DistributedDataParallel) -> SieveState | None:
    """Make `model` exchange its gradients by the method; returns the state of a sieve."""
    name, *options = method.split(":")
    match name:
        case "fp16":
            model.register_comm_hook(None, fp16_compress_hook)
        case "powersgd":
            state = PowerSGDState(None, int(options[0]), start_powerSGD_iter=2)
            model.register_comm_hook(state, powerSGD_hook)
        case "sieve":
            return attach(model, **read_settings("".join(options)))
    return None
