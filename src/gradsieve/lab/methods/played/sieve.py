"""The sieves of many ranks in one process."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from gradsieve.bucket.plan import Plan
from gradsieve.bucket.rank_sieve import RankSieve
from gradsieve.bucket.shared_bases import share_bases, turn_shared
from gradsieve.config import SieveConfig
from gradsieve.control.budget import Budget
from gradsieve.lab.methods.played.rounded import Rounded
from gradsieve.lab.methods.played.transport import play_exchanges
from gradsieve.topology import TOPOLOGIES, FrameTopology


class PlayedSieve:
    """A `RankSieve` for each rank.

    Args:
        residual_decay: the factor of a residual after each exchange of its parameter.
        tells_own: whether `unsent` tells what is a rank's own, as in an `OuterSync`.

    Raises:
        ValueError: the options ask for a link.
    """

    def __init__(
        self,
        parameters: Sequence[Tensor],
        ranks: int,
        config: SieveConfig,
        residual_decay: float = 1.0,
        *,
        tells_own: bool = False,
    ) -> None:
        topology = TOPOLOGIES.get(config.topology_name)
        is_played = isinstance(topology, FrameTopology) and not topology.of_nodes
        if isinstance(config.policy, Budget) or not is_played:
            raise ValueError(
                "a budget (the default), or another exchange, needs a link, and here is none: "
                'name a policy, as in "sieve:balanced-sigma=1" or "local:every=10,balanced-sigma=1"'
            )
        assert isinstance(topology, FrameTopology)
        self.topology = topology
        self.sieves = [RankSieve(config) for _ in range(ranks)]
        for sieve in self.sieves:
            sieve.parameters.tells_own = tells_own and config.error_feedback
            sieve.bind(nn.ParameterList(parameters))
        share_bases(self.sieves)
        self.residual_decay = residual_decay

    def plan(self, rank: int, places: Sequence[int] | None) -> Plan:
        """Return what a rank sends of the parameters that are exchanged together; None is all."""
        sieve, ranks = self.sieves[rank], len(self.sieves)
        kept = list(sieve.parameters)
        chosen = kept if places is None else [kept[place] for place in places]
        place, count = self.topology.place_of(rank, ranks)
        return sieve.plan(self.topology, chosen, place, count)

    def unsent(self, rank: int, place: int) -> Tensor | None:
        """Return what a rank has not sent of a parameter, as `OuterExchange.unsent` does."""
        return list(self.sieves[rank].parameters)[place].unsent()

    def average(
        self, gradients: Sequence[Sequence[Tensor]], places: Sequence[int] | None = None
    ) -> tuple[list[Tensor], float]:
        for sieve in self.sieves:
            sieve.begin_step()
        if self.sieves[0].is_before_start:
            for sieve in self.sieves:
                sieve.commit()
            return Rounded(32).average(gradients)
        ranks = len(self.sieves)
        plans = [self.plan(rank, places) for rank in range(ranks)]
        buckets = [torch.cat([gradient.view(-1) for gradient in own]) for own in gradients]
        exchanges = []
        for sieve, plan, bucket in zip(self.sieves, plans, buckets, strict=True):
            sieve.place_residuals(plan, ranks, no_node)
            frames = sieve.encode(plan, sieve.select(plan, bucket))
            exchanges.append(self.topology.exchange(sieve.step, plan, frames))
        contributions = play_exchanges(exchanges)
        average = self.sieves[0].average(plans[0], contributions, buckets[0], ranks)
        sent = sum(sieve.step.clock.frame_bytes for sieve in self.sieves)
        for sieve, plan in zip(self.sieves, plans, strict=True):
            sieve.commit()
            sieve.decay(plan, self.residual_decay)
        turn_shared(self.sieves)
        parts = torch.split(average, [gradient.numel() for gradient in gradients[0]])
        averages = [
            part.view_as(gradient) for part, gradient in zip(parts, gradients[0], strict=True)
        ]
        return averages, 8 * sent / ranks


def no_node(total: Tensor) -> None:
    """Each rank is a node of its own, whose sum is its own tensor."""
