"""What ranks tell each other in the job's store, of whatever kind that is."""

import time

import pytest
import torch.distributed as dist

from gradsieve.exchange import store as store_module
from gradsieve.exchange.store import JobStore, StoreError, within


@pytest.fixture(params=["file", "hash", "tcp"])
def store(request, tmp_path, monkeypatch):
    kinds = {
        "file": lambda: dist.FileStore(str(tmp_path / "store"), 1),
        "hash": dist.HashStore,
        "tcp": lambda: dist.TCPStore("127.0.0.1", 0, 1, is_master=True),
    }
    default = dist.PrefixStore("default_pg", kinds[request.param]())
    monkeypatch.setattr(store_module, "default_store", lambda: default)
    return JobStore("here")


def test_what_a_job_store_keeps(store):
    assert store.get("a") is None
    store.set("a", "é")
    assert store.get("a") == "é"
    assert JobStore("elsewhere").get("a") is None
    assert store.set_unless_set("b", "first") == "first"
    assert store.set_unless_set("b", "second") == "first"
    assert [store.count("n", 1), store.count("n", 2), store.count("n")] == [1, 3, 3]
    assert store.lacking([]) == []
    assert store.lacking(["c", "a", "d", "b", "e"]) == ["c", "d", "e"]
    assert store.wait("a", 0.0) == "é"
    assert store.wait("c", 0.02) is None
    store.delete("a")
    assert store.get("a") is None


def test_a_job_that_is_started_again_finds_nothing(store, monkeypatch):
    store.set("a", "here")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert JobStore("here").get("a") is None


def test_without_a_store_nobody_waits():
    with pytest.raises(StoreError):
        JobStore("here")
    assert within(1.0, lambda: JobStore("here").get("a")) is None
    start = time.monotonic()
    assert within(0.05, lambda: time.sleep(1)) is None
    assert time.monotonic() - start < 0.5
