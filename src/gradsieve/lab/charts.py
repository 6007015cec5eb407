"""Charts, written to files."""

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import vl_convert


def write_chart(chart: Any, path: Path) -> None:
    """Write an altair chart, or its specification, to a path that ends in .png or .svg."""
    specification = chart if isinstance(chart, dict) else chart.to_dict()
    if path.suffix == ".svg":
        path.write_text(vl_convert.vegalite_to_svg(specification))
    else:
        path.write_bytes(smaller_png(vl_convert.vegalite_to_png(specification, scale=2)))


def smaller_png(data: bytes) -> bytes:
    """Compress a PNG of vl-convert again, to a fifth of its size."""
    signature, chunks = data[:8], list(png_chunks(data))
    pixels = zlib.decompress(b"".join(content for kind, content in chunks if kind == b"IDAT"))
    first = next(place for place, (kind, _) in enumerate(chunks) if kind == b"IDAT")
    kept = [(kind, content) for kind, content in chunks if kind != b"IDAT"]
    kept.insert(first, (b"IDAT", zlib.compress(pixels, 6)))
    return signature + b"".join(
        struct.pack(">I", len(content))
        + kind
        + content
        + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in kept
    )


def png_chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    at = 8
    while at < len(data):
        size, kind = struct.unpack_from(">I4s", data, at)
        yield kind, data[at + 8 : at + 8 + size]
        at += 12 + size
