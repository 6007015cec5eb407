"""Charts as files."""

from pathlib import Path
from typing import Any

import vl_convert


def write_chart(chart: Any, path: Path) -> None:
    """An altair chart as PNG or SVG, by the path's ending."""
    specification = chart.to_json()
    if path.suffix == ".svg":
        path.write_text(vl_convert.vegalite_to_svg(specification))
    else:
        path.write_bytes(vl_convert.vegalite_to_png(specification, scale=2))
