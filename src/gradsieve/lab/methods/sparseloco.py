"""SparseLoCo: local steps that send the largest elements of each chunk in few bits.

A. Sarfi et al., Communication Efficient LLM Pre-training with SparseLoCo, arXiv 2508.15706,
algorithm 1, and its public code (tplr-y/CCLoco, ccloco.py).
"""

from dataclasses import dataclass

from gradsieve.lab.methods.local_words import settings_of_peer
from gradsieve.lab.methods.method import Played
from gradsieve.lab.methods.peer_words import (
    read_options,
    require_bits,
    require_positive,
    require_shares,
)
from gradsieve.lab.methods.played.chunk_top import TopOfChunks
from gradsieve.lab.methods.played.chunks import Chunks
from gradsieve.lab.methods.played.local import LocalSteps
from gradsieve.lab.methods.played.quantized import BITS
from gradsieve.lab.workloads.replica import Replica


@dataclass(frozen=True, slots=True)
class SparseLocoOptions:
    every: int = 30
    k: int = 64
    """The elements that a chunk of `chunk` x `chunk` sends."""
    chunk: int = 64
    bits: int = 2
    decay: float = 0.95
    lr: float = 1.0
    """Of the outer optimizer, SGD. The public code applies it twice, the paper once, as here."""
    momentum: float = 0.0

    def __post_init__(self) -> None:
        require_positive(k=self.k, chunk=self.chunk)
        if self.k > self.chunk**2:
            raise ValueError(f"k is at most {self.chunk**2}, the elements of a chunk, got {self.k}")
        require_bits(self.bits, BITS)
        require_shares(decay=self.decay)


class SparseLoco(Played):
    form = "sparseloco[:every=STEPS,k=ELEMENTS,OPTION=VALUE...]"

    def __init__(self, options: str = "") -> None:
        self.options = read_options(options, SparseLocoOptions)
        self.settings = settings_of_peer(
            every=self.options.every, lr=self.options.lr, momentum=self.options.momentum
        )

    def kept(self, size: int) -> int:
        """Return what a chunk sends: smaller chunks send the same share.

        The public code sends up to k elements of a chunk of any size, so small vectors whole.
        """
        return max(1, round(size * self.options.k / self.options.chunk**2))

    def play(self, replica: Replica, ranks: int) -> LocalSteps:
        options = self.options
        compressor = TopOfChunks(
            [Chunks(p.shape, options.chunk) for p in replica.model.parameters()],
            ranks,
            self.kept,
            bits=options.bits,
            decay=options.decay,
        )
        return LocalSteps(replica, ranks, self.settings, compressor)
