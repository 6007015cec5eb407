"""A workload's model with its optimizer and schedule."""

from copy import deepcopy

from torch import nn

from gradsieve.lab.workloads.workload import Workload


class Replica:
    """The model, the optimizer and the schedule of one rank.

    Args:
        steps: the steps of the whole training, which the schedule spans.
    """

    def __init__(
        self, workload: Workload, model: nn.Module, learning_rate: float, steps: int
    ) -> None:
        self.workload, self.learning_rate, self.steps = workload, learning_rate, steps
        self.model = model
        self.optimizer = workload.make_optimizer(model, learning_rate)
        self.schedule = workload.make_schedule(self.optimizer, steps)

    def copy(self) -> "Replica":
        """Return another replica in the same state."""
        other = Replica(self.workload, deepcopy(self.model), self.learning_rate, self.steps)
        other.optimizer.load_state_dict(deepcopy(self.optimizer.state_dict()))
        other.schedule.load_state_dict(self.schedule.state_dict())
        return other

    def update(self) -> None:
        """Make a step of optimizer and schedule with the present gradients."""
        self.optimizer.step()
        self.schedule.step()
