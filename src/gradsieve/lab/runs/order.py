"""Files that tell ranks what to measure, and bring back what they found."""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gradsieve.lab.link import Link
from gradsieve.lab.runs.config import write_whole
from gradsieve.lab.runs.launch import run_ranks

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

ORDER, FOUND = "order.json", "found.json"


def ask_ranks(
    module: str, order: "DataclassInstance", directory: Path, ranks: int, link: Link
) -> dict[str, Any]:
    """Run `module`, which calls `answer_order`, on each rank; return what rank 0 found, as JSON.

    Args:
        directory: where both files and the ranks' logs are written.

    Raises:
        RunError: a rank failed.
    """
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / ORDER
    path.write_text(json.dumps(asdict(order)))
    run_ranks(module, path, ranks, link)
    return read_found(directory)


def read_found(directory: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((directory / FOUND).read_text())
    return found


def answer_order(path: str, measure: Callable[[dict[str, Any]], "DataclassInstance"]) -> None:
    """Join the other ranks, and measure with them what the file at `path` asks for."""
    from gradsieve.lab.runs.rank import joined

    order = json.loads(Path(path).read_text())
    with joined() as rank:
        found = measure(order)
        if rank == 0:
            write_whole(Path(path).with_name(FOUND), asdict(found))
