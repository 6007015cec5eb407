"""Frames: the bytes that one rank sends for one bucket. Nothing here knows torch.distributed."""

from gradsieve.codec.frame import (
    Frame,
    FrameError,
    Section,
    decode,
    decode_frame,
    encode,
    encode_frame,
)

__all__ = [
    "Frame",
    "FrameError",
    "Section",
    "decode",
    "decode_frame",
    "encode",
    "encode_frame",
]
