"""Groups that others manage: what is asked of them, and which they are."""

import pytest
import torch
import torch.distributed as dist

from gradsieve.errors import SieveError
from gradsieve.exchange.managed import ManagedGroup, is_managed


class Twins:
    """A group of two ranks that always send the same."""

    def __init__(self, rank):
        self.rank = rank

    def size(self):
        return 2

    def alltoall_base(self, received, sent, arriving, leaving, options):
        assert arriving == leaving == [len(sent) // 2] * 2
        mine = sent.chunk(2)[self.rank]
        received.copy_(torch.cat([mine, mine]))


def test_the_rank_is_found_by_what_arrives():
    group = ManagedGroup(Twins(rank=1))
    with pytest.raises(SieveError, match="have not met"):
        group.rank()
    group.meet()
    assert (group.rank(), group.size()) == (1, 2)


def test_one_collective_is_enough_for_sums():
    store = dist.HashStore()
    group = ManagedGroup(dist.ProcessGroupGloo(store, 0, 1))
    tensor = torch.arange(6.0).view(2, 3).t()
    group.all_reduce(tensor)
    assert torch.equal(tensor, torch.arange(6.0).view(2, 3).t())
    (mine,) = group.all_gather(tensor)
    assert torch.equal(mine, tensor)


def test_any_error_of_a_group_is_a_failure():
    class Ended(Twins):
        def alltoall_base(self, *arguments):
            raise AssertionError("process group not initialized")

    with pytest.raises(RuntimeError, match="process group not initialized"):
        ManagedGroup(Ended(rank=0)).meet()


def test_only_groups_that_torch_has_not_made_are_managed():
    assert is_managed(Twins(rank=0))
    assert is_managed(dist.ProcessGroup(0, 1))
    assert not is_managed(None)
    assert not is_managed(dist.GroupMember.NON_GROUP_MEMBER)
