"""Tables on the terminal."""

from collections.abc import Sequence

from rich.table import Table


def table_of(
    headings: Sequence[str], *, title: str, caption: str | None = None, words: Sequence[str] = ()
) -> Table:
    """An empty table of numbers; the columns in `words` hold words and stand at the left."""
    table = Table(title=title, caption=caption, title_justify="left", caption_justify="left")
    for heading in headings:
        table.add_column(heading, justify="left" if heading in words else "right")
    return table
