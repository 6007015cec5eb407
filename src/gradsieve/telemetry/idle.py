"""Tell the user if optimizers step and training never uses what was made for it.

A framework may ignore a communication hook, or the call that averages may be missing. The ranks
then train without each other's gradients, or without the sieve, and nothing else would say so.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Protocol
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook

from gradsieve.runtime.notices import tell

STEPS = 3
"""Number of steps of one optimizer after which the user is told."""


class MayBeIdle(Protocol):
    """What training must use in every step."""

    idle_notice: ClassVar[str]
    """What the user is told: what did not happen, and what to do."""

    def trains(self, parameter: Tensor) -> bool:
        """Return whether an optimizer of this parameter must not step without this object."""


class Watch:
    """Counts the steps of optimizers until each object that it watches is used."""

    def __init__(self) -> None:
        self._steps: WeakKeyDictionary[MayBeIdle, dict[int, int]] = WeakKeyDictionary()
        """For each watched object, the number of steps by the identity of the optimizer."""
        self._is_registered = False

    def begin(self, watched: MayBeIdle) -> None:
        """Watch an object until `end`, or until the user was told. It is not kept alive."""
        self._steps[watched] = {}
        if not self._is_registered:
            # It stays for good: torch may be walking through its hooks when the last object is
            # used, and a hook without anything to watch costs less than a microsecond.
            register_optimizer_step_post_hook(self._count)
            self._is_registered = True

    def end(self, watched: MayBeIdle) -> None:
        """The object is used."""
        self._steps.pop(watched, None)

    def _count(
        self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> None:
        # The compiler cannot trace what follows.
        if torch.compiler.is_compiling() or not self._steps:
            return
        trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        for watched, steps in list(self._steps.items()):
            if not any(watched.trains(parameter) for parameter in trained):
                continue
            steps[id(optimizer)] = steps.get(id(optimizer), 0) + 1
            if steps[id(optimizer)] == STEPS:
                del self._steps[watched]
                tell(
                    f"gradsieve: the optimizer has stepped {STEPS} times, and {watched.idle_notice}"
                )


watch = Watch()
