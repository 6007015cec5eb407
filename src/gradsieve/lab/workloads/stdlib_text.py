"""The sources of Python's own standard library as text: every machine that runs Python has them.

The files differ from one Python version to the next, and with them every result a little; within
one version they are the same on every machine.
"""

import hashlib
import sysconfig
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from gradsieve.lab.workloads.mnist import DataError

EXCLUDED = {
    "__pycache__",
    "dist-packages",
    "ensurepip",
    "idlelib",
    "lib2to3",
    "site-packages",
    "test",
    "tests",
    "turtledemo",
}
"""Directories whose files are left out: they are not the library itself, or are its tests."""
INSTALLATION_FILES = ("_sysconfigdata", "sitecustomize", "usercustomize")
"""How the names of files begin that differ from one installation to the next."""
FEWEST_FILES = 300
HELD_OUT_SHARE = 0.1


class Text(NamedTuple):
    """The bytes of all files of each part, joined in the order of their names."""

    train: torch.Tensor
    """uint8 [N]."""
    held_out: torch.Tensor
    """uint8 [M]; no file is in both."""


@cache
def load_stdlib_text(directory: str | None = None) -> Text:
    """Read the sources in `directory`, else those of the running Python.

    Raises:
        DataError: there are too few of them.
    """
    root = Path(directory or sysconfig.get_paths()["stdlib"])
    files = {path.relative_to(root).as_posix(): path for path in root.rglob("*.py")}
    names = sorted(
        name
        for name in files
        if EXCLUDED.isdisjoint(name.split("/")) and not name.startswith(INSTALLATION_FILES)
    )
    if len(names) < FEWEST_FILES:
        raise DataError(
            f"{root} holds {len(names)} Python sources, of which a training text needs "
            f"{FEWEST_FILES}; install the whole standard library (Debian: libpython3-stdlib)"
        )
    parts: tuple[list[bytes], list[bytes]] = [], []
    for name in names:
        parts[is_held_out(name)].append(files[name].read_bytes())
    return Text(*(torch.from_numpy(np.frombuffer(b"".join(p), np.uint8).copy()) for p in parts))


def is_held_out(name: str) -> bool:
    """Decide by the file's name alone, so that a file stays in its part from version to version."""
    digest = hashlib.blake2b(name.encode(), digest_size=4).digest()
    return int.from_bytes(digest, "little") < HELD_OUT_SHARE * 2**32
