"""The terminal, files of rows, and how a command fails."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from typing import NoReturn

import typer
from rich.console import Console

console = Console()
errors = Console(stderr=True)


@contextmanager
def working(what: str) -> Iterator[Callable[[str], None]]:
    """Show what is being done; the block calls the function that it gets with each new text.

    On a terminal one line changes. Elsewhere lines go to standard error, so that a long run leaves
    a log and a redirected table stays a table.
    """
    if console.is_terminal:
        with console.status(what) as status:
            yield status.update
        return
    log(what)
    yield log


def log(text: str) -> None:
    """Print a line of progress, where no terminal shows a line that changes."""
    errors.print(text, style="dim", markup=False, highlight=False)


def require_outputs(*paths: Path | None, plot: Path | None = None, out: Path | None = None) -> None:
    """Refuse paths that cannot be written, before anything is measured.

    Args:
        out: a directory that the command makes.
    """
    if plot is not None and plot.suffix not in (".png", ".svg"):
        fail(f"cannot draw {plot}: its name must end in .png or .svg")
    if out is not None:
        require_directory(out)
    for path in (*paths, plot):
        if path is not None and (path.parent != out or out.exists()):
            require_file(path)


def require_directory(path: Path) -> None:
    """Refuse a directory that cannot be made or written to."""
    try:
        require_room(path)
    except OSError as error:
        fail(f"cannot write to {path}: {error.strerror}; give another directory")


def require_file(path: Path) -> None:
    """Refuse a file that cannot be written; its content stays as it is."""
    try:
        if not path.parent.is_dir():
            fail(f"cannot write {path}: {path.parent} is no folder")
        if path.is_dir():
            fail(f"cannot write {path}: it is a folder; give a file")
        target = path.resolve()
        if not exists(target):
            require_room(target.parent)
        elif target.is_file():
            # Closing a pipe would tell its reader that all is written.
            with target.open("ab"):
                pass
    except OSError as error:
        fail(f"cannot write {path}: {error.strerror}; give a file that can be written")


def require_room(path: Path) -> None:
    """Raise OSError where a directory, or the nearest one above it, takes no files.

    Nothing is made that another process could see, which may be about to make the same.
    """
    nearest = next(folder for folder in (path, *path.absolute().parents) if exists(folder))
    with TemporaryFile(dir=nearest):
        pass


def exists(path: Path) -> bool:
    """Return whether there is such a path. Raises OSError where there can be none."""
    try:
        path.stat()
    except FileNotFoundError:
        return False
    return True


@contextmanager
def measuring() -> Iterator[None]:
    """Turn what runs raise within the block into a message that ends the command."""
    from gradsieve.lab.runs.launch import RunError

    try:
        yield
    except (RunError, ValueError) as error:
        fail(str(error))
    except KeyboardInterrupt:
        fail("interrupted; the link is taken down", status=130)


def require_data(*workloads: str) -> None:
    """End the command where the data of a workload is missing, before any rank is started.

    Raises:
        ValueError: there is no workload of that name.
    """
    from gradsieve.lab.workloads.mnist import DataError
    from gradsieve.lab.workloads.workload import load_workload

    try:
        for name in workloads:
            load_workload(name).require_data()
    except DataError as error:
        fail(str(error))


def require_drawing() -> None:
    """End the command where the packages that draw figures are missing."""
    try:
        import altair  # noqa: F401
        import vl_convert  # noqa: F401
    except ImportError as error:
        fail(f"figures are drawn and {error.name} is missing: pip install 'gradsieve[lab]'")


def write_json(path: Path | None, content: object) -> None:
    if path is None:
        return
    try:
        path.write_text(json.dumps(content, indent=1) + "\n")
    except OSError as error:
        fail(f"cannot write {path}: {error.strerror}; give --json a file that can be written")


def fail(message: str, status: int = 1) -> NoReturn:
    """End the command with a message on standard error."""
    errors.print(f"gradsieve: {message}", markup=False, highlight=False)
    raise typer.Exit(status)
