"""Keep machine code on disk, for the processes after the one that compiled it.

numba's own cache asks whether the file of the *called* function has changed, and trusts what it
reads. A helper that was changed in another file leaves stale code. A file cut by a crash ends every
later start, and so does a full disk. Here one key covers all sources that are compiled, every file
carries a checksum of itself, and a file that cannot be read or written costs no more than compiling
again.

The class replaces `numba.core.caching.FunctionCache` behind a dispatcher. It uses the private names
that `CompileResultCacheImpl` uses, and was checked against numba 0.62 to 0.68.
"""

import hashlib
import os
import pickle
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import llvmlite
import numba
from numba.core.compiler import CompileResult
from numba.core.serialize import dumps
from numba.misc.appdirs import AppDirs

from gradsieve.runtime.notices import tell

PACKAGE = Path(__file__).parent.parent
FOLDERS = ("codec", "recording", "rotation", "runtime", "sieve")
"""Folders whose sources are compiled, or are imported by sources that are."""
MAGIC = b"gradsieve machine code 1\n"
DIGEST_BYTES = 32


class MachineCode:
    """Keep the machine code of one function, in a file for each signature and processor."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._name = f"{function.__module__}.{function.__qualname__}".replace("<", "").replace(
            ">", ""
        )
        self._enabled = True
        # While this process runs, its files may be replaced by those of another version.
        sources()

    @property
    def cache_path(self) -> str:
        """The directory that is searched first."""
        return str(next(places(), ""))

    def enable(self) -> None:
        self._enabled = True

    def disable(self) -> None:
        self._enabled = False

    def flush(self) -> None:
        """Delete the function's files."""
        for place in places():
            for file in place.glob(f"{self._name}-*.code"):
                remove(file)

    def load_overload(self, signature: Any, target: Any) -> Any:
        """Return what an earlier process has compiled; None if that is missing or damaged."""
        target.refresh()
        file = self._file(signature, target.codegen())
        for place in places() if self._enabled else ():
            try:
                payload = checked((place / file).read_bytes())
            except OSError:
                continue
            try:
                if payload is not None:
                    return CompileResult._rebuild(target, *pickle.loads(payload))
            except Exception:
                # Written by a numba that calls itself the same, and is not.
                pass
            tell(f"gradsieve: kept machine code was damaged, compiling anew what was (in {place})")
        return None

    def save_overload(self, signature: Any, result: Any) -> None:
        """Write what was compiled to the first directory that accepts it."""
        if not self._enabled or result.lifted or result.library.has_dynamic_globals:
            return
        payload: bytes = dumps(result._reduce())
        failures = [] if sources() else ["the sources of the package cannot be read"]
        for place in places():
            try:
                place.mkdir(parents=True, exist_ok=True)
                self._write(place / self._file(signature, result.codegen), payload)
            except OSError as error:
                failures.append(f"{place}: {error.strerror or error}")
            else:
                self._remove_stale(place)
                return
        tell(
            "gradsieve: compiled code cannot be kept, and every start will compile anew "
            f"({'; '.join(failures)}). Set NUMBA_CACHE_DIR to a directory with room for 10 MB "
            "that can be written to"
        )

    def _file(self, signature: Any, codegen: Any) -> str:
        key = hashlib.sha256(repr((str(signature), codegen.magic_tuple(), versions())).encode())
        return f"{self._name}-{sources()}-{key.hexdigest()[:24]}.code"

    def _write(self, file: Path, payload: bytes) -> None:
        """Write a file so that another process sees all of it or nothing."""
        part = file.with_name(f"{file.name}.{uuid.uuid4().hex[:12]}.part")
        try:
            part.write_bytes(MAGIC + hashlib.sha256(payload).digest() + payload)
            os.replace(part, file)
        finally:
            part.unlink(missing_ok=True)

    def _remove_stale(self, place: Path) -> None:
        """Remove the code that earlier sources of this package were compiled to."""
        for file in place.glob(f"{self._name}-*"):
            if not file.name.startswith(f"{self._name}-{sources()}-"):
                remove(file)


def remove(file: Path) -> None:
    """Remove a file that is no longer of use; one that cannot be removed does no harm."""
    with suppress(OSError):
        file.unlink()


def places() -> Iterator[Path]:
    """Yield the directories that code is kept in: NUMBA_CACHE_DIR if it is set.

    Otherwise they are the package's own and the user's cache.
    """
    if not sources():
        return
    settings: Any = numba.config
    # Packages in several environments may share a home.
    folder = f"gradsieve_{hashlib.sha256(str(PACKAGE).encode()).hexdigest()[:16]}"
    if settings.CACHE_DIR:
        yield Path(settings.CACHE_DIR) / folder
        return
    yield PACKAGE / "__pycache__"
    yield Path(AppDirs(appname="numba", appauthor=False).user_cache_dir) / folder


def checked(data: bytes) -> bytes | None:
    """Return the payload of a file; None if the file is not as it was written."""
    start = len(MAGIC) + DIGEST_BYTES
    payload = data[start:]
    if data[:start] != MAGIC + hashlib.sha256(payload).digest():
        return None
    return payload


@cache
def sources() -> str:
    """Return a digest of all sources that are compiled; empty if they lie in an archive."""
    digest = hashlib.sha256()
    try:
        for file in source_files():
            text = file.read_bytes()
            digest.update(f"{file.relative_to(PACKAGE)} {len(text)}\n".encode() + text)
    except OSError:
        return ""
    return digest.hexdigest()[:16]


def source_files() -> Iterator[Path]:
    """Yield the sources that the digest covers.

    Raises:
        OSError: a folder cannot be read; one that lies in an archive cannot.
    """
    for name in FOLDERS:
        yield from sorted(file for file in (PACKAGE / name).iterdir() if file.suffix == ".py")


def versions() -> tuple[Any, ...]:
    """Return what machine code depends on beside its sources, its signature and the processor."""
    settings: Any = numba.config
    chosen = ("OPT", "BOUNDSCHECK", "DEBUGINFO_DEFAULT", "LOOP_VECTORIZE", "SLP_VECTORIZE")
    options = tuple(repr(getattr(settings, name, None)) for name in chosen)
    return (sys.implementation.cache_tag, numba.__version__, llvmlite.__version__, options)
