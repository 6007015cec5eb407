"""Local steps: ranks train apart and exchange what their weights have moved."""

from torch import nn

from gradsieve.lab.methods.local_words import read_local_settings
from gradsieve.lab.methods.method import Distributed, Played, Prepared
from gradsieve.lab.methods.played.local import LocalSteps
from gradsieve.lab.workloads.replica import Replica
from gradsieve.outer import OuterSync


class Local(Distributed, Played):
    form = "local[:every=STEPS,OPTION=VALUE...]"

    def __init__(self, options: str = "") -> None:
        self.settings = read_local_settings(options)

    @property
    def phase(self) -> int:
        return self.settings.every

    def require_possible(self) -> None:
        played = self.settings.start_step or self.settings.residual_decay != 1
        if played or not self.settings.holds:
            raise ValueError(
                "start_step, residual_decay and holds are for bench rate, which plays ranks"
            )

    def prepare(self, model: nn.Module) -> Prepared:
        settings = self.settings
        outer = OuterSync(
            model,
            settings.sieve,
            every=settings.every,
            delay=settings.delay,
            fragments=settings.fragments,
            optimizer=settings.optimizer,
        )
        return Prepared(model, outer.state, outer)

    def play(self, replica: Replica, ranks: int) -> LocalSteps:
        return LocalSteps(replica, ranks, self.settings)
