"""The sieve: the hook of this package."""

from collections.abc import Sequence

from torch import Tensor, nn

from gradsieve.hook import attach
from gradsieve.lab.methods.method import Distributed, PlayedInStep, Prepared, in_ddp
from gradsieve.lab.methods.played.sieve import PlayedSieve
from gradsieve.lab.methods.sieve_words import read_config


class Sieve(Distributed, PlayedInStep):
    form = "sieve[:POLICY=NUMBER,OPTION=VALUE...]"

    def __init__(self, options: str = "") -> None:
        self.config = read_config(options)

    def prepare(self, model: nn.Module) -> Prepared:
        wrapped = in_ddp(model)
        return Prepared(wrapped, attach(wrapped, self.config))

    def compressor(self, parameters: Sequence[Tensor], ranks: int) -> PlayedSieve:
        return PlayedSieve(parameters, ranks, self.config)
