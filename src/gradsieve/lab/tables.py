"""Tables on the terminal."""

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.table import Table


def table_of(
    headings: Sequence[str], *, title: str, caption: str | None = None, words: Sequence[str] = ()
) -> Table:
    """Return an empty table of numbers; the columns in `words` hold text, aligned to the left."""
    table = Table(
        title=title,
        caption=caption,
        title_justify="left",
        caption_justify="left",
        box=SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
    )
    for heading in headings:
        left = heading in words
        table.add_column(heading, justify="left" if left else "right", no_wrap=left)
    return table
