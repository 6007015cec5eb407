"""Post-local SGD: synchronous training first, then local steps and the mean of the ranks.

T. Lin et al., Don't Use Large Mini-Batches, Use Local SGD, arXiv 1808.07217, section 3.
"""

from dataclasses import dataclass

from gradsieve.lab.methods.local_words import settings_of_peer
from gradsieve.lab.methods.method import Played
from gradsieve.lab.methods.peer_words import read_options
from gradsieve.lab.methods.played.local import LocalSteps
from gradsieve.lab.workloads.replica import Replica


@dataclass(frozen=True, slots=True)
class PostLocalOptions:
    start_step: int = 200
    """The number of synchronous steps, which send all gradients."""
    every: int = 20


class PostLocal(Played):
    form = "post-local[:start_step=STEPS,every=STEPS]"

    def __init__(self, options: str = "") -> None:
        read = read_options(options, PostLocalOptions)
        self.settings = settings_of_peer(
            every=read.every, lr=1.0, momentum=0.0, start_step=read.start_step
        )

    def play(self, replica: Replica, ranks: int) -> LocalSteps:
        return LocalSteps(replica, ranks, self.settings)
