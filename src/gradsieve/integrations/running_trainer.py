"""What the `Trainer` of Transformers does not tell its callbacks: itself and its checkpoint."""

import inspect

from torch.nn.parallel import DistributedDataParallel
from transformers import Trainer

from gradsieve.errors import SieveError
from gradsieve.runtime.notices import tell
from gradsieve.runtime.torch_private import uncompiled


def running_trainer() -> tuple[Trainer, str | None]:
    """Return the Trainer whose `train` is running, and the folder from which it resumes.

    The folder is None for a run that does not resume. A callback is given neither, nor the DDP
    model, so the call of `train` that has fired the event is looked up on the stack.

    Raises:
        SieveError: no Trainer is training.
    """
    frame = inspect.currentframe()
    while frame is not None:
        trainer = frame.f_locals.get("self")
        # The first such frame has replaced True by the last checkpoint.
        if isinstance(trainer, Trainer) and "resume_from_checkpoint" in frame.f_locals:
            return trainer, frame.f_locals["resume_from_checkpoint"]
        frame = frame.f_back
    raise SieveError(
        "SieveCallback works in Trainer.train() alone: Trainer(..., callbacks=[SieveCallback()])"
    )


def ddp_of(trainer: Trainer) -> DistributedDataParallel:
    """Return the DDP model of a Trainer that is training.

    Raises:
        SieveError: it trains in one process, with FSDP, DeepSpeed or shards of its own, or in a
            search for hyperparameters.
    """
    if trainer.state.is_hyper_param_search:
        raise SieveError(
            "SieveCallback does not serve hyperparameter_search, which keeps its checkpoints in "
            "folders of their own: leave the callback out of the search"
        )
    model = uncompiled(trainer.model_wrapped)
    if isinstance(model, DistributedDataParallel):
        return model
    found = f"SieveCallback needs DDP, and this Trainer trains {type(model).__name__}"
    if trainer.args.world_size == 1:
        raise SieveError(
            f"{found} in one process: start several, as by torchrun --nproc-per-node 2 train.py"
        )
    raise SieveError(f"{found}: train without FSDP, DeepSpeed and tensor parallelism")


def tell_of_meetings(trainer: Trainer) -> None:
    """Tell the user of an option by which the ranks meet in every step, despite local steps."""
    if trainer.args.average_tokens_across_devices:
        tell(
            "gradsieve: the ranks count their tokens together in every step, and wait for each "
            "other; with local steps, set TrainingArguments(average_tokens_across_devices=False)"
        )
