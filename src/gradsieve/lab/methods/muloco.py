"""MuLoCo: local steps whose pseudo-gradients are quantized, with Muon as the inner optimizer.

B. Thérien et al., MuLoCo: Muon is a practical inner optimizer for DiLoCo, arXiv 2505.23725, and its
public code (facebookresearch/MuLoCo, quantized_outer_sgd.py). The inner optimizer is that of the
workload: use it with optimizer=muon.
"""

from dataclasses import dataclass

from gradsieve.lab.methods.local_words import settings_of_peer
from gradsieve.lab.methods.method import Played
from gradsieve.lab.methods.peer_words import read_options, require_bits, require_shares
from gradsieve.lab.methods.played.local import LocalSteps
from gradsieve.lab.methods.played.quantized import QuantizedMean
from gradsieve.lab.workloads.replica import Replica

BITS = (2, 4, 8, 32)


@dataclass(frozen=True, slots=True)
class MulocoOptions:
    every: int = 30
    bits: int = 4
    lr: float = 0.8
    """Of the outer optimizer, SGD. The public code applies it twice, the paper once, as here."""
    momentum: float = 0.8
    """Nesterov's. In the paper the best one grows with the number of ranks."""
    error_feedback: bool = True
    decay: float = 0.9
    """The factor of a residual before each exchange."""

    def __post_init__(self) -> None:
        require_bits(self.bits, BITS)
        require_shares(decay=self.decay)


class Muloco(Played):
    form = "muloco[:every=STEPS,bits=2|4|8|32,OPTION=VALUE...]"

    def __init__(self, options: str = "") -> None:
        self.options = read_options(options, MulocoOptions)
        self.settings = settings_of_peer(
            every=self.options.every, lr=self.options.lr, momentum=self.options.momentum
        )

    def play(self, replica: Replica, ranks: int) -> LocalSteps:
        options = self.options
        compressor = QuantizedMean(
            list(replica.model.parameters()),
            ranks,
            options.bits,
            options.decay if options.error_feedback else None,
        )
        return LocalSteps(replica, ranks, self.settings, compressor)
