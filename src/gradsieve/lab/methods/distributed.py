"""The ways of training together that runs compare, each written as a line of text."""

from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import fp16_compress_hook
from torch.distributed.algorithms.ddp_comm_hooks.powerSGD_hook import PowerSGDState, powerSGD_hook
from torch.nn.parallel import DistributedDataParallel

from gradsieve.hook import attach
from gradsieve.lab.methods.local_words import LocalSettings, read_local_settings
from gradsieve.lab.methods.sieve_words import read_settings
from gradsieve.outer import OuterSync
from gradsieve.state import SieveState

METHODS = (
    "ddp, fp16, powersgd:RANK, lock-step, alone, sieve[:POLICY=NUMBER,OPTION=VALUE...], "
    "local[:every=STEPS,OPTION=VALUE...]"
)
LOCK_STEP = "lock-step"
"""No gradient travels but one 4-byte all-reduce a step."""
ALONE = "alone"
"""Nothing travels, and nobody waits."""
ONE_BUCKET_MB = 2**20


def require_method(method: str) -> None:
    """Raise ValueError where no method is written like this."""
    name, *options = method.split(":")
    try:
        match name, options:
            case (("ddp" | "fp16" | "lock-step" | "alone"), []):
                return
            case "powersgd", [rank] if rank.isdecimal() and int(rank) > 0:
                return
            case "sieve", ([] | [_]):
                read_settings("".join(options))
                return
            case "local", ([] | [_]):
                settings = local_settings(method)
                if settings.start_step or settings.residual_decay != 1:
                    raise ValueError(
                        "start_step and residual_decay are for bench rate, which plays ranks"
                    )
                return
    except ValueError as error:
        raise ValueError(f"{method!r} is no method: {error}") from error
    raise ValueError(f"{method!r} is no method; write one of {METHODS}")


def is_local(method: str) -> bool:
    return method.partition(":")[0] == "local"


def local_settings(method: str) -> LocalSettings:
    return read_local_settings(method.partition(":")[2])


def phase_of(method: str) -> int:
    """Steps from one exchange to the next."""
    return local_settings(method).every if is_local(method) else 1


def require_phase(method: str, steps: int) -> None:
    """Raise ValueError where so many measured steps are no phase."""
    if steps < phase_of(method):
        raise ValueError(
            f"{method} is measured over whole phases of {phase_of(method)} steps, and {steps} "
            "would be measured: ask for more steps"
        )


def trains_together(method: str) -> bool:
    """Whether the ranks have a common model in the end."""
    return method not in (LOCK_STEP, ALONE)


def bucket_cap_mb(method: str) -> float | None:
    """PowerSGD's hook issues collectives in callbacks: with two buckets on Gloo it aborts."""
    return ONE_BUCKET_MB if method.startswith("powersgd") else None


def make_outer_sync(method: str, model: nn.Module) -> OuterSync:
    settings = local_settings(method)
    return OuterSync(
        model,
        every=settings.every,
        delay=settings.delay,
        fragments=settings.fragments,
        optimizer=settings.optimizer,
        **settings.sieve,
    )


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
