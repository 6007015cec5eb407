"""What a device is asked for, and in which order; no device is at hand, so that a double tells."""

import pytest
import torch

from gradsieve.runtime import devices

DEVICE = torch.device("cuda", 0)


class DoubleStream:
    def __init__(self, name, told):
        self.name, self.told = name, told

    def record_event(self):
        self.told.append(f"mark {self.name}")
        return f"event of {self.name}"

    def wait_event(self, event):
        self.told.append(f"{self.name} waits for {event}")

    def synchronize(self):
        self.told.append(f"host waits for {self.name}")


@pytest.fixture
def told(monkeypatch):
    told = []
    current = [DoubleStream("training", told)]
    monkeypatch.setattr(torch.accelerator, "current_stream", lambda device: current[0])

    def set_stream(stream):
        told.append(f"work on {stream.name}")
        current[0] = stream

    monkeypatch.setattr(torch.accelerator, "set_stream", set_stream)
    monkeypatch.setattr(torch, "Stream", lambda device: DoubleStream("own", told))
    monkeypatch.setattr(devices, "_streams", {})
    return told


def test_the_threads_work_waits_for_what_the_training_stream_was_asked_for(told):
    asked = devices.Handover(DEVICE)
    with asked.taken_over():
        told.append("select")
    assert told == [
        "mark training",
        "own waits for event of training",
        "work on own",
        "select",
        "work on training",
    ]


def test_another_stream_joins_what_was_handed_over(told):
    devices.Handover(DEVICE).join()
    assert told == ["mark training", "training waits for event of training"]
    devices.Handover(torch.device("cpu")).join()
    assert len(told) == 2


def test_the_stream_comes_back_when_the_work_fails(told):
    asked = devices.Handover(DEVICE)
    with pytest.raises(KeyError), asked.taken_over():
        raise KeyError
    assert told[-1] == "work on training"


class DoubleTensor:
    is_cpu, device = False, DEVICE

    def __init__(self, told):
        self.told = told


def test_copies_to_the_host_are_all_under_way_before_it_waits(told, monkeypatch):
    class Copy:
        def copy_(self, tensor, non_blocking):
            assert non_blocking
            told.append("copy")
            return self

    def empty_like(tensor, device, pin_memory):
        assert device == "cpu"
        assert pin_memory
        return Copy()

    monkeypatch.setattr(torch, "empty_like", empty_like)
    copies = devices.on_host(DoubleTensor(told), DoubleTensor(told))
    assert len(copies) == 2
    assert told == ["copy", "copy", "host waits for training"]


def test_on_the_cpu_nothing_is_handed_over_and_nothing_copied(told):
    with devices.Handover(torch.device("cpu")).taken_over():
        pass
    tensor = torch.ones(3)
    assert devices.on_host(tensor)[0] is tensor
    assert told == []
