"""Frames: the bytes that one rank sends for one bucket. Nothing here knows torch.distributed."""

from gradsieve.codec.coding import Coding, Section
from gradsieve.codec.codings import CODINGS, VALUES, Kind, Values
from gradsieve.codec.errors import FrameError
from gradsieve.codec.frame import Frame, decode_frame, encode_frame
from gradsieve.codec.grid import Grid
from gradsieve.codec.inspect import FrameReport, SectionReport, inspect
from gradsieve.codec.sections import empty_section, pruned_section, whole_section
from gradsieve.codec.single import decode, encode

__all__ = [
    "CODINGS",
    "VALUES",
    "Coding",
    "Frame",
    "FrameError",
    "FrameReport",
    "Grid",
    "Kind",
    "Section",
    "SectionReport",
    "Values",
    "decode",
    "decode_frame",
    "empty_section",
    "encode",
    "encode_frame",
    "inspect",
    "pruned_section",
    "whole_section",
]
