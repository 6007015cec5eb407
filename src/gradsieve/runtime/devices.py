"""Order the work that two threads ask of one device, and copy tensors to the host."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


class Handover:
    """Mark the work that this thread has asked of a device, for another thread to continue after.

    On the CPU it does nothing.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._asked: torch.Event | None = None
        if device.type != "cpu":
            self._asked = torch.accelerator.current_stream(device).record_event()

    def join(self) -> None:
        """Let the caller's stream continue after the work that was handed over."""
        if self._asked is not None:
            torch.accelerator.current_stream(self._device).wait_event(self._asked)

    @contextmanager
    def taken_over(self) -> Iterator[None]:
        """Work on a stream of the other thread's own, after the work that was handed over."""
        if self._asked is None:
            yield
            return
        stream = own_stream(self._device)
        stream.wait_event(self._asked)
        before = torch.accelerator.current_stream(self._device)
        torch.accelerator.set_stream(stream)
        try:
            yield
        finally:
            torch.accelerator.set_stream(before)


def catch_up(device: torch.device) -> None:
    """Let the caller's stream wait for the work that the communication thread has asked for."""
    if device.type != "cpu" and device in _streams:
        torch.accelerator.current_stream(device).wait_stream(_streams[device])


_streams: dict[torch.device, torch.Stream] = {}


def own_stream(device: torch.device) -> torch.Stream:
    if device not in _streams:
        _streams[device] = torch.Stream(device)
    return _streams[device]


def on_host(*tensors: Tensor) -> list[Tensor]:
    """Return copies in pinned memory, made at the same time; host tensors are not copied."""
    if all(tensor.is_cpu for tensor in tensors):
        return list(tensors)
    copies = [
        torch.empty_like(tensor, device="cpu", pin_memory=True).copy_(tensor, non_blocking=True)
        for tensor in tensors
    ]
    torch.accelerator.current_stream(tensors[0].device).synchronize()
    return copies


def future_on(device: torch.device) -> torch.futures.Future[Tensor]:
    """A future whose readers wait for the device's work as well."""
    return torch.futures.Future(devices=None if device.type == "cpu" else [device])
