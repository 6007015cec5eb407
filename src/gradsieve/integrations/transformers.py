"""gradsieve in the `Trainer` of Transformers, also with PEFT."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from transformers import TrainerCallback

from gradsieve import checkpoint
from gradsieve.config import SieveConfig, config_from
from gradsieve.hook import attach
from gradsieve.integrations.local_state import LocalState
from gradsieve.integrations.local_steps import train_locally
from gradsieve.integrations.running_trainer import ddp_of, running_trainer, tell_of_meetings
from gradsieve.outer import OuterSync
from gradsieve.runtime.notices import tell
from gradsieve.state import SieveState


class SieveCallback(TrainerCallback):  # type: ignore[misc, unused-ignore]
    """Prunes the gradients of a `transformers.Trainer` that trains with DDP.

    It attaches when training begins, logs a record after each loss, and saves every rank's state
    in the folder of each checkpoint, from which ``train(resume_from_checkpoint=...)`` restores it.

    Args:
        config, options: those of `gradsieve.attach`; with `every`, those of `OuterSync`.
        every: the number of local steps from one exchange to the next, as in `OuterSync`. The ranks
            also exchange before an evaluation, before a checkpoint and at the end.

    Raises:
        TypeError, ValueError: an option does not exist or has a value that is not allowed.
        SieveError: as training begins, if the Trainer does not train with DDP in several processes.

    Example: ``Trainer(..., callbacks=[SieveCallback(threshold=gs.Sigma(2))])``
    """

    sieve: SieveState | None = None  #: The state; None before training begins.
    outer: OuterSync | None = None  #: The local steps; None before training begins.

    def __init__(
        self,
        config: SieveConfig | None = None,
        *,
        every: int | Sequence[int] | None = None,
        **options: Any,
    ) -> None:
        if every is None:
            config, options = config_from(type(self), config, options), {}  # type: ignore[arg-type]
        self._config, self._every, self._options = config, every, options
        self._model: DistributedDataParallel | None = None
        self._local: LocalState | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **event: Any) -> None:
        self._trainer, folder = running_trainer()
        model = ddp_of(self._trainer)
        if model is not self._model:  # A second `train` goes on where the first one ended.
            self._attach(model, event["optimizer"])
        if folder is not None and any(Path(folder).glob("sieve-rank*.pt")):
            checkpoint.load(self._kept, folder)
        elif folder is not None:
            tell(f"gradsieve: {folder} was saved without SieveCallback: residuals begin at zero")

    def _attach(self, model: DistributedDataParallel, optimizer: Optimizer) -> None:
        scaler = self._trainer.accelerator.scaler
        if self._every is None:
            self.sieve = attach(model, self._config, scaler=scaler)
        else:
            tell_of_meetings(self._trainer)
            self.outer = train_locally(model, self._config, every=self._every, **self._options)
            self.sieve = self.outer.state
            self._local = LocalState(self.outer, [optimizer], scaler=scaler)
        self._kept: LocalState | SieveState = self._local or self.sieve
        self._model = model

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **event: Any) -> None:
        if self.outer:
            self.outer.step()

    def on_step_end(self, args: Any, state: Any, control: Any, **event: Any) -> None:
        is_shown = control.should_save or control.should_evaluate or control.should_training_stop
        if self._local and is_shown:
            self._local.finish()

    on_epoch_end = on_step_end

    def on_log(self, args: Any, state: Any, control: Any, **event: Any) -> None:
        if self.sieve and self.sieve.last and "loss" in event["logs"]:
            # Trackers, whose callbacks come first, have read these logs already.
            scalars = self.sieve.last.scalars().items()
            self._trainer.log({name: n for name, n in scalars if name.startswith("sieve/")})

    def on_save(self, args: Any, state: Any, control: Any, **event: Any) -> None:
        self.on_evaluate(args, state, control)
        checkpoint.save(self._kept, Path(args.output_dir) / f"checkpoint-{state.global_step}")

    def on_evaluate(self, args: Any, state: Any, control: Any, **event: Any) -> None:
        if self._local:
            self._local.require_finished()
