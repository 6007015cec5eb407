"""Muon for the hidden matrices of a model, and the workload's own optimizer for the rest.

K. Jordan et al. 2024, Muon: An optimizer for hidden layers in neural networks. The rate is scaled
so that an update is as large as one of AdamW's (J. Liu et al. 2025, arXiv 2502.16982, section 2.2).
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from gradsieve.lab.workloads.workload import OtherOptimizer


class Together(Optimizer):
    """Optimizers that step together, as one object; each holds one group of parameters.

    Schedules, `state_dict`, `load_state_dict` and `deepcopy` see the groups of all of them.
    """

    def __init__(self, parts: Sequence[Optimizer]) -> None:
        self.parts = list(parts)
        super().__init__([group for part in parts for group in part.param_groups], {})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part, group in zip(self.parts, self.param_groups, strict=True):
            # Loading a state replaces groups and state, so that the parts are given them anew.
            part.param_groups, part.state = [group], self.state
            part.step()
        return loss

    def __getstate__(self) -> dict[str, Any]:
        # torch keeps nothing but groups and state.
        return super().__getstate__() | {"parts": self.parts}


def muon_beside(
    is_hidden: Callable[[str], bool],
    rest: Callable[[list[Tensor]], Optimizer],
    *,
    learning_rate: float,
    weight_decay: float,
) -> OtherOptimizer:
    """Return Muon as a workload's other optimizer.

    Args:
        is_hidden: whether Muon trains the matrix of this name; other parameters are the rest's.
        rest: makes the optimizer of all other parameters. Its rate is not the run's, because the
            best rate of Muon is several times that of AdamW.
        learning_rate: Muon's, where a run names none.
    """

    def make(model: nn.Module, lr: float) -> Together:
        hidden: list[Tensor] = []
        others: list[Tensor] = []
        for name, parameter in model.named_parameters():
            takes = parameter.dim() == 2 and is_hidden(name)
            (hidden if takes else others).append(parameter)
        muon = torch.optim.Muon(
            hidden, lr=lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"
        )
        return Together([muon, rest(others)])

    return OtherOptimizer(make, learning_rate, require_muon)


def require_muon() -> None:
    """Raise ValueError where torch has no Muon."""
    if not hasattr(torch.optim, "Muon"):
        raise ValueError(
            f"optimizer=muon needs torch 2.9 or newer, and this is {torch.__version__}"
        )
