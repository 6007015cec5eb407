"""Options that several commands take."""

from pathlib import Path
from typing import Annotated, Any

import typer

Json = Annotated[Path | None, typer.Option("--json", help="Write the rows to this file as JSON.")]
LearningRate = Annotated[
    float, typer.Option("--lr", min=0, help="Adam's; 1e-4 is the original study's.")
]
Link = Annotated[
    str, typer.Option(help='Rate of the emulated link, as "1gbit"; "none": bare loopback.')
]
Ranks = Annotated[int, typer.Option(min=2, max=16, help="Processes that train together.")]
Seed = Annotated[int, typer.Option(help="Of weights, data order and dropout.")]


def links(default: str) -> Any:
    """Return an option that takes links of several rates, repeated."""
    return typer.Option(
        help='Emulated, as "1gbit" or "20mbit+40ms"; "none": bare loopback; repeat it.',
        show_default=default,
    )
