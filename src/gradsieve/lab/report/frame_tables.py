"""Tables of what a frame in a file holds."""

from pathlib import Path

import numpy as np
import torch
from rich.table import Table

from gradsieve.codec import FrameReport, inspect
from gradsieve.lab.tables import table_of

SETTINGS = ("section", "kind", "elements", "sent", "threshold", "step", "block")
BITS = ("section", "positions", "signs", "values", "overhead", "all", "all, an element")


def read_frame(path: Path) -> FrameReport:
    """Read a frame.

    Raises:
        OSError: the file cannot be read.
        FrameError: it holds no frame.
    """
    return inspect(torch.from_numpy(np.fromfile(path, np.uint8)))


def frame_tables(report: FrameReport) -> tuple[Table, Table]:
    return settings_table(report), bits_table(report)


def settings_table(report: FrameReport) -> Table:
    table = table_of(
        SETTINGS,
        title=(
            f"step {report.step}, layout {report.layout:#018x}, {report.bytes:,} bytes, "
            f"{report.bits_per_parameter:.3f} bits a parameter"
            + (", with values that are not finite" if report.nonfinite else "")
        ),
        words=("kind",),
    )
    for number, section in enumerate(report.sections):
        table.add_row(
            str(number),
            section.kind,
            f"{section.numel:,}",
            f"{section.density:.2%}",
            f"{section.threshold:.3g}",
            f"{section.step:.3g}" if section.step else "",
            f"{section.block:,}",
        )
    return table


def bits_table(report: FrameReport) -> Table:
    table = table_of(
        BITS,
        title="Bits",
        caption=(
            "an element that was sent, but for the last column; positions: with the counts of "
            "blocks; overhead: settings and the entry in the frame's table"
        ),
    )
    for number, section in enumerate(report.sections):
        parts = (
            section.positions_bytes + section.counts_bytes,
            section.signs_bytes,
            section.values_bytes,
            section.settings_bytes,
            section.bytes,
        )
        sent = section.survivors
        table.add_row(
            str(number),
            *(f"{8 * part / sent:.2f}" if sent else "–" for part in parts),
            f"{8 * section.bytes / max(section.numel, 1):.3f}",
        )
    return table
