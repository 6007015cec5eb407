"""Who is missing from a meeting is named in a warning."""

import pytest
import torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore  # registers the backend

from gradsieve.exchange import meeting as meetings
from gradsieve.exchange import store
from gradsieve.exchange.meeting import Meeting
from gradsieve.runtime import notices


@pytest.fixture
def as_rank(monkeypatch):
    """A job of three ranks with one store, in which this process says which rank it is."""
    kept = dist.HashStore()
    monkeypatch.setattr(store, "default_store", lambda: kept)
    monkeypatch.setattr(notices, "_told", set())
    dist.init_process_group("fake", rank=0, world_size=3, store=FakeStore())

    def become(rank):
        monkeypatch.setenv("LOCAL_RANK", str(rank))
        monkeypatch.setattr(meetings.dist, "get_rank", lambda: rank)
        return Meeting(dist.group.WORLD, "here")

    yield become
    monkeypatch.undo()
    dist.destroy_process_group()


def test_the_first_rank_that_has_come_names_the_others_once(as_rank, caplog):
    for rank in (2, 1):
        as_rank(rank).come("gather")
    as_rank(2).warn_of_missing("it is late")
    assert caplog.messages == []
    for _ in range(2):
        as_rank(1).warn_of_missing("it is late")
    assert caplog.messages == ["gradsieve waits for rank 0: it is late"]
    as_rank(0).come("gather")
    as_rank(0).warn_of_missing("nobody is")
    assert len(caplog.messages) == 1
