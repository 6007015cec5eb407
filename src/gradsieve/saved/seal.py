"""Checksums, which reveal a damaged state, and a state that is loaded with other weights."""

import hashlib
import struct
import zlib
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

SEAL = "checksum"
"""The field that holds the checksum of all others."""
Add = Callable[[bytes | memoryview], object]


def sealed(saved: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy with the checksum of its other fields.

    Raises:
        ValueError: a field has a value that cannot be saved. The message names the field.
    """
    return {**saved, SEAL: checksum_of(saved)}


def require_whole(saved: Mapping[str, Any]) -> None:
    """Raise ValueError if the checksum is not that of the other fields."""
    found = checksum_of(saved)
    if saved[SEAL] != found:
        raise ValueError(
            f"the state is damaged: its checksum is {found}, it was saved with {saved[SEAL]}; "
            "load another copy"
        )


def mixture_of(saved: Mapping[str, Any]) -> str:
    """Return what else may explain why a state of several ranks is not valid, or nothing."""
    if saved["world_size"] == 1:
        return ""
    with suppress(ValueError):
        if checksum_of(saved) == saved[SEAL]:
            return ""
    return (
        ". If torch.distributed.checkpoint has saved it under one key for all ranks, it is a "
        "mixture of their states: save gs.checkpoint.PerRank(state) there"
    )


def checksum_of(saved: Mapping[str, Any]) -> str:
    """Return a hash of 128 bits over keys, types, numbers and tensors, in hexadecimal.

    It does not depend on the order of keys, nor on the device and strides of a tensor.
    """
    found = hashlib.blake2b(digest_size=16)
    add({key: value for key, value in saved.items() if key != SEAL}, "the state", found.update)
    return found.hexdigest()


def add(value: object, field: str, update: Add) -> None:
    """Feed a value to a hash, with its type and length, so that different values stay different."""
    if isinstance(value, Tensor):
        add_tensor(value, field, update)
    elif isinstance(value, Mapping):
        update(b"{%d:" % len(value))
        for key in sorted(value, key=lambda key: (type(key).__name__, repr(key))):
            add(key, f"a key of {field}", update)
            add(value[key], f"{field}[{key!r}]", update)
    elif isinstance(value, list | tuple):
        update(b"[%d:" % len(value))
        for place, item in enumerate(value):
            add(item, f"{field}[{place}]", update)
    elif value is None or isinstance(value, bool):
        update(b"%r;" % value)
    elif isinstance(value, int):
        update(b"i%d;" % value)
    elif isinstance(value, float):
        update(b"f" + struct.pack("<d", value))
    elif isinstance(value, str):
        text = value.encode("utf-8", "surrogatepass")
        update(b"s%d:" % len(text) + text)
    else:
        raise ValueError(f"{field} is a {type(value).__name__}, which cannot be saved and checked")


def add_tensor(tensor: Tensor, field: str, update: Add) -> None:
    if tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_meta:
        raise ValueError(f"{field} is no dense tensor and cannot be saved and checked")
    update(f"t{tensor.dtype}{list(tensor.shape)}:".encode())
    update(bytes_of(tensor))


def bytes_of(tensor: Tensor) -> memoryview:
    """Return the bytes of a tensor in the order of its elements, whatever its order in memory."""
    flat = tensor.detach().resolve_conj().resolve_neg().reshape(-1).cpu().contiguous()
    return flat.view(torch.uint8).numpy().data


def crc_of(tensor: Tensor) -> int:
    """Return the CRC-32 of the bytes of a parameter."""
    return zlib.crc32(bytes_of(tensor))
