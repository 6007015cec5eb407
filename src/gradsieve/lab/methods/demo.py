"""DeMo: momentum that stays on its rank but for the largest frequencies of each chunk.

B. Peng et al., DeMo: Decoupled Momentum Optimization, arXiv 2411.19870, algorithm 1, and its public
code (bloc97/DeMo, demo.py).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from gradsieve.lab.methods.method import Played
from gradsieve.lab.methods.peer_words import read_options, require_positive, require_shares
from gradsieve.lab.methods.played.chunk_top import TopOfChunks
from gradsieve.lab.methods.played.chunks import Chunks
from gradsieve.lab.methods.played.compressor import Gradients
from gradsieve.lab.methods.played.synchronous import Synchronous
from gradsieve.lab.workloads.replica import Replica

VALUE_BITS = 16
"""Values travel as bfloat16."""


@dataclass(frozen=True, slots=True)
class DemoOptions:
    k: int = 32
    """The frequencies that a chunk sends; a chunk with fewer sends all."""
    chunk: int = 64
    decay: float = 0.999
    subtract: float = 1.0
    """The share of what is sent that leaves the momentum; the paper's second version has 0.2."""
    weight_decay: float = 0.1

    def __post_init__(self) -> None:
        require_positive(k=self.k, chunk=self.chunk)
        require_shares(decay=self.decay, subtract=self.subtract, weight_decay=self.weight_decay)


class SignsOfTop(TopOfChunks):
    """Add gradients times the learning rate to the momentum; return the signs of the average."""

    def __init__(
        self, parameters: Sequence[Tensor], ranks: int, options: DemoOptions, optimizer: Optimizer
    ) -> None:
        self.optimizer = optimizer
        super().__init__(
            [Chunks(p.shape, options.chunk, dct=True) for p in parameters],
            ranks,
            lambda size: min(size, options.k),
            bits=VALUE_BITS,
            decay=options.decay,
            subtracted=options.subtract,
        )

    def average(
        self, gradients: Gradients, places: Sequence[int] | None = None
    ) -> tuple[list[Tensor], float]:
        rate = self.optimizer.param_groups[0]["lr"]
        scaled = [[rate * gradient for gradient in own] for own in gradients]
        averages, sent = super().average(scaled, places)
        return [average.sign() for average in averages], sent


class Demo(Played):
    """DeMo, an optimizer of its own: it takes the workload's schedule, and not its optimizer."""

    form = "demo[:k=FREQUENCIES,OPTION=VALUE...]"

    def __init__(self, options: str = "") -> None:
        self.options = read_options(options, DemoOptions)

    def play(self, replica: Replica, ranks: int) -> Synchronous:
        workload = replace(replica.workload, make_optimizer=self.sgd)
        own = Replica(workload, replica.model, replica.learning_rate, replica.steps)
        parameters = list(own.model.parameters())
        return Synchronous(own, SignsOfTop(parameters, ranks, self.options, own.optimizer))

    def sgd(self, model: nn.Module, lr: float) -> SGD:
        # Without momentum SGD's weight decay is the decoupled one of the paper.
        return SGD(model.parameters(), lr=lr, weight_decay=self.options.weight_decay)
