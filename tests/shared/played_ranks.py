"""Ranks in one process, by the public methods of their sieves alone."""

import torch
from torch import nn

import gradsieve as gs
from gradsieve.bucket.rank_sieve import RankSieve
from gradsieve.config import SieveConfig
from gradsieve.lab.methods.played.transport import play_exchanges
from gradsieve.saved.seal import checksum_of
from gradsieve.topology import DENSE, TOPOLOGIES

RANKS = 3
TWO_SHOT = TOPOLOGIES["two-shot"]


def no_node(total):
    """Each rank is a node of its own, whose sum is its own tensor."""


class Scaler:
    """Another scale in each step, a power of two: nothing is rounded off."""

    def __init__(self):
        self.scale = 1024.0

    def get_scale(self):
        return self.scale


class Ranks:
    """The first matrix is cut into two pieces, of two of the ranks; the second is one piece."""

    def __init__(self, *, scaler=None, **options):
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(260, 128), nn.Linear(128, 20))
        config = SieveConfig(**{"min_numel": 1000, "threshold": gs.Density(0.05)} | options)
        self.sieves = [RankSieve(config, scaler) for _ in range(RANKS)]
        self.plans, self.buckets, self.frames = [], [], []
        self.bind()

    def bind(self):
        for sieve in self.sieves:
            sieve.bind(self.model)

    def send(self, topology, gradients):
        """Begin a step, and make the frames of each rank."""
        self.buckets = [gradient.clone() for gradient in gradients]
        self.plans, self.frames, exchanges = [], [], []
        for rank, (sieve, bucket) in enumerate(zip(self.sieves, self.buckets, strict=True)):
            sieve.begin_step()
            place = topology.place_of(rank, RANKS)
            plan = sieve.plan(topology, list(sieve.parameters), *place)
            sieve.place_residuals(plan, RANKS, no_node)
            frames = sieve.encode(plan, sieve.select(plan, bucket))
            exchanges.append(topology.exchange(sieve.step, plan, frames))
            self.plans.append(plan)
            self.frames += frames
        return exchanges

    def exchange(self, exchanges):
        """The average, which is the same bits on all ranks."""
        contributions = play_exchanges(exchanges)
        average, *others = (
            sieve.average(plan, contributions, bucket, RANKS)
            for sieve, plan, bucket in zip(self.sieves, self.plans, self.buckets, strict=True)
        )
        assert all(torch.equal(average.view(torch.int32), o.view(torch.int32)) for o in others)
        return average

    def all_reduce(self, gradients):
        """A dense step: everything travels, with what is kept."""
        buckets = [gradient.clone() for gradient in gradients]
        for sieve, bucket in zip(self.sieves, buckets, strict=True):
            sieve.begin_step()
            sieve.give_residuals(list(sieve.parameters), bucket, RANKS)
        return torch.stack(buckets).mean(dim=0)

    def commit(self):
        for sieve in self.sieves:
            sieve.commit(skipped=sieve.step.clock.nonfinite_anywhere)
            if sieve.is_turn_due:
                sieve.turn(RANKS, no_node)

    def step(self, topology, gradients):
        if topology is DENSE:
            average = self.all_reduce(gradients)
        else:
            average = self.exchange(self.send(topology, gradients))
        self.commit()
        return average

    def put_back(self):
        for sieve in self.sieves:
            sieve.put_back()

    def skip(self):
        for sieve in self.sieves:
            sieve.skip()

    def kept(self, rank):
        """What a rank keeps, flat."""
        parameters = self.sieves[rank].parameters
        residuals = torch.cat([p.unrotated_residual().flatten() for p in parameters]).double()
        owned = torch.cat([p.unrotated_owned().flatten() for p in parameters]).double()
        return residuals + RANKS * owned

    def owed(self):
        """What all averages lack of all gradients."""
        return sum(self.kept(rank) for rank in range(RANKS))

    def checksums(self):
        return [checksum_of(sieve.save()) for sieve in self.sieves]


class RanksOfWeights(Ranks):
    """As the ranks of an `OuterSync`, which tell what is their own."""

    def bind(self):
        for sieve in self.sieves:
            sieve.bind_weights(self.model, list(self.model.named_parameters()))
            assert sieve.stands_for_weights


def gradients_of(step, scale=1.0):
    generator = torch.Generator().manual_seed(step)
    numel = 260 * 128 + 128 + 128 * 20 + 20
    return list(0.1 * scale * torch.randn(RANKS, numel, generator=generator))
