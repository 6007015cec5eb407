"""gradsieve in Lightning: a callback for ``lightning`` and ``pytorch_lightning``."""

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from gradsieve.config import SieveConfig
from gradsieve.gathering import gathered, own_of
from gradsieve.hook import attach
from gradsieve.integrations.ddp_models import ddp_model
from gradsieve.integrations.local_state import LocalState, require_kind
from gradsieve.integrations.local_steps import scalars_of, train_locally
from gradsieve.outer import OuterSync
from gradsieve.runtime.notices import tell
from gradsieve.state import SieveState

if TYPE_CHECKING or find_spec("lightning") or not find_spec("pytorch_lightning"):
    from lightning.pytorch import Callback
else:
    from pytorch_lightning import Callback

KEY = "gradsieve"  #: The key of the states of all ranks in a checkpoint of Lightning.


class SieveCallback(Callback):
    """Prune what ranks exchange in ``Trainer.fit`` with a DDP strategy.

    Every checkpoint of the trainer holds the states of all ranks, so ``fit(ckpt_path=...)`` resumes
    exactly. The trainer's loggers get the numbers of the records.

    Args:
        config: the options; None takes the defaults of `SieveConfig`.
        every: None to exchange gradients in each step, as `attach` does. Otherwise the number of
            local steps between exchanges, or the least and the most of them, as in `OuterSync`.
        options: those of `attach`, or those of `OuterSync` if `every` is given.

    When ``fit`` begins, it raises SieveError if the strategy makes no DDP model, and what `attach`
    or `OuterSync` raises.
    """

    state: SieveState | None = None
    """The state of the sieve since the last ``fit`` began; None before."""
    outer: OuterSync | None = None
    """The `OuterSync` since the last ``fit`` began; None without local steps."""

    def __init__(self, config: SieveConfig | None = None, *, every: Any = None, **options: Any):
        self._config, self._every, self._options = config, every, options
        self._own: SieveState | LocalState | None = None
        self._found: dict[str, Any] | None = None
        self._step = 0

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        self._found = None  # An interrupted fit may have left it.

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        strategy, options = type(trainer.strategy).__name__, self._options
        model = ddp_model(trainer.strategy.model, strategy, 'Trainer(strategy="ddp", devices=...)')
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        if self._every is None:
            self.state = self._own = attach(model, self._config, scaler=scaler, **options)
        else:
            self.outer = train_locally(model, self._config, every=self._every, **options)
            self.state = self.outer.state
            self._own = LocalState(self.outer, trainer.optimizers, pl_module, scaler)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        # Lightning has restored weights, optimizers and the scaler by now.
        if self._own is not None and self._found is not None:
            self._own.load_state_dict(self._found)
        self._found, self._step = None, trainer.global_step

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        # A step that the scaler has skipped counts as well, so that all ranks count the same.
        if trainer.global_step == self._step:
            return
        self._step = trainer.global_step
        if self.outer is not None:
            self.outer.step()
        # `Callback.log` takes about a millisecond for each number.
        if trainer.log_every_n_steps and self._step % trainer.log_every_n_steps == 0:
            for logger in trainer.loggers:
                logger.log_metrics(scalars_of(self.outer or self.state), self._step - 1)

    def _finish(self, trainer: Any, pl_module: Any = None) -> None:
        if self.outer is not None and trainer.state.fn == "fit":
            self.outer.finish()

    on_validation_start = on_train_end = _finish

    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        if self._own is not None:
            # The checkpoint refers to the parameters, which this changes in place.
            self._finish(trainer)
            checkpoint[KEY] = gathered(self._own)

    def on_load_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        if trainer.state.fn == "fit" and KEY in checkpoint:
            self._found = own_of(checkpoint[KEY])
            require_kind(self._found, local=self._every is not None)
        elif trainer.state.fn == "fit":
            tell("gradsieve: this checkpoint was saved without SieveCallback: residuals begin at 0")
