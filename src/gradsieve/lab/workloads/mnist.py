"""The MNIST handwritten digits, always the same bytes, wherever they come from.

A study is only comparable with another one on the same data, so every file is held against the
SHA-256 of its unpacked content. Compressed copies differ between mirrors; their content does not.
"""

import gzip
import hashlib
import math
import os
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

ENVIRONMENT = "GRADSIEVE_DATA"
"""The environment variable that names a directory with the MNIST files."""

MIRRORS = (
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
)
"""Where the files are downloaded from; the second is asked when the first fails."""

SHA256 = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}
"""The SHA-256 of every file, unpacked."""

_CHECKOUT = Path(__file__).resolve().parents[4] / "data" / "mnist"
_GZIP_MAGIC = b"\x1f\x8b"
_IDX_UINT8 = 0x08
_TIMEOUT_SECONDS = 15


class DataError(RuntimeError):
    """MNIST cannot be had: the message names the file, what was found and what to do."""


class Split(NamedTuple):
    """The training or the test images, in the order of the original files."""

    images: torch.Tensor
    """float32 [N, 1, 28, 28], 0 (background) to 1."""
    labels: torch.Tensor
    """int64 [N], 0 to 9."""

    def first(self, count: int) -> "Split":
        """Return the first `count` images and labels, as views."""
        return Split(self.images[:count], self.labels[:count])


def load_mnist(train: bool, directory: str | os.PathLike[str] | None = None) -> Split:
    """Load the 60,000 training images (`train=True`) or the 10,000 test images.

    The files, compressed (`.gz`) or not, are looked for in `directory`; else in the directory that
    the environment variable GRADSIEVE_DATA names; else in `data/mnist/` of the source checkout.
    Without any of the three they are downloaded, once, to the user's cache.

    Returns:
        images float32 [N, 1, 28, 28] in 0 to 1 and labels int64 [N].

    Raises:
        DataError: a file is missing, truncated, has another checksum or cannot be downloaded.
    """
    part = "train" if train else "t10k"
    pixels = _load(f"{part}-images-idx3-ubyte", directory)
    digits = _load(f"{part}-labels-idx1-ubyte", directory)
    images = torch.from_numpy(pixels.astype(np.float32)).div_(255).unsqueeze_(1)
    return Split(images, torch.from_numpy(digits.astype(np.int64)))


def require_mnist() -> None:
    """Raise DataError where a file of MNIST is missing and cannot be downloaded."""
    folder = _local_folder(None)
    for name in SHA256:
        if folder is None:
            _download(name)
        else:
            _find(folder, name)


def parse_idx(content: bytes, name: str) -> npt.NDArray[np.uint8]:
    """Turn the content of an IDX file of unsigned bytes into a read-only array of its shape.

    `name` is what error messages call the file.

    Raises:
        DataError: the magic number, the element type or the length is not that of such a file.
    """
    if len(content) < 4 or content[:2] != b"\0\0":
        raise DataError(
            f"{name} is not an IDX file: it begins with {content[:4].hex(' ') or 'nothing'}, "
            "not with 00 00. Get an intact copy."
        )
    element_type, dimensions = content[2], content[3]
    if element_type != _IDX_UINT8:
        raise DataError(
            f"{name} holds IDX elements of type {element_type:#04x}; only unsigned bytes "
            f"({_IDX_UINT8:#04x}) can be read. Get the original file."
        )
    start = 4 + 4 * dimensions
    if dimensions == 0 or len(content) < start:
        raise DataError(
            f"{name} ends within its header: {len(content)} bytes for {dimensions} dimensions. "
            "Get an intact copy."
        )
    shape = tuple(int(size) for size in np.frombuffer(content, ">u4", dimensions, offset=4))
    expected = start + math.prod(shape)
    if len(content) != expected:
        raise DataError(
            f"{name} has {len(content):,} bytes; its header, shape {shape}, asks for "
            f"{expected:,}. Get an intact copy."
        )
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def _load(name: str, directory: str | os.PathLike[str] | None) -> npt.NDArray[np.uint8]:
    folder = _local_folder(directory)
    content = _download(name) if folder is None else _read_local(_find(folder, name), name)
    return parse_idx(content, name)


def _local_folder(directory: str | os.PathLike[str] | None) -> Path | None:
    if directory is not None:
        return Path(directory)
    if named := os.environ.get(ENVIRONMENT):
        return Path(named)
    return _CHECKOUT if _CHECKOUT.is_dir() else None


def _find(folder: Path, name: str) -> Path:
    for candidate in (folder / f"{name}.gz", folder / name):
        if candidate.is_file():
            return candidate
    found = "has neither" if folder.is_dir() else "is not a directory, so there is neither"
    raise DataError(
        f"{folder} {found} {name}.gz nor {name}. Name the directory that holds the MNIST files "
        f"(argument, or environment variable {ENVIRONMENT}), or put the file there: "
        f"{MIRRORS[0]}{name}.gz"
    )


def _read_local(path: Path, name: str) -> bytes:
    try:
        return _read(path, name)
    except DataError as flaw:
        raise DataError(
            f"{path}: {flaw}. Replace it with an intact, readable copy: {MIRRORS[0]}{name}.gz"
        ) from flaw


def _read(path: Path, name: str) -> bytes:
    """Return the unpacked content of `path`, verified to be that of the MNIST file `name`.

    The DataError says only what is wrong; what to do depends on where the file came from.
    """
    try:
        content = path.read_bytes()
        # The content decides, because a download in progress has no suffix to tell by.
        if content.startswith(_GZIP_MAGIC):
            content = gzip.decompress(content)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"the file is truncated or damaged ({error})") from error
    except OSError as error:
        raise DataError(f"the file cannot be read ({error})") from error
    digest = hashlib.sha256(content).hexdigest()
    if digest != SHA256[name]:
        raise DataError(
            f"the unpacked content ({len(content):,} bytes) has SHA-256 {digest}, "
            f"but {name} has {SHA256[name]}"
        )
    return content


def _download(name: str) -> bytes:
    """Return the verified content of `name` from the user's cache, which is filled when need be."""
    pooch = _import_pooch()
    cached = Path(pooch.os_cache("gradsieve")) / f"{name}.gz"
    failures = []
    if cached.exists():
        try:
            return _read(cached, name)
        except DataError as flaw:
            cached.unlink(missing_ok=True)
            failures.append(f"{cached} (removed): {flaw}")
    for mirror in MIRRORS:
        url = f"{mirror}{cached.name}"
        try:
            _fetch(pooch, mirror, cached, name)
            return _read(cached, name)
        except (DataError, OSError) as error:
            failures.append(f"{url}: {error}")
    raise DataError(
        f"MNIST is missing: {name}.gz could not be downloaded to {cached.parent}. Check the "
        f"network, or get the four MNIST files elsewhere and name their directory in the "
        f"environment variable {ENVIRONMENT}. Tried:\n"
        + "\n".join(f"  {failure}" for failure in failures)
    )


def _fetch(pooch: Any, mirror: str, cached: Path, name: str) -> None:
    def download_verified(url: str, output_file: str, caller: Any) -> None:
        # pooch moves the file into the cache only after this returns, so no other rank ever
        # sees a copy that is incomplete or wrong.
        pooch.HTTPDownloader(timeout=_TIMEOUT_SECONDS)(url, output_file, caller)
        _read(Path(output_file), name)

    # Ranks that start together race for the directory, which pooch does not expect.
    cached.parent.mkdir(parents=True, exist_ok=True)
    # Not retrieve(): without a hash of the archive it asks the user to pin one.
    source = pooch.create(cached.parent, mirror, registry={cached.name: None})
    source.fetch(cached.name, downloader=download_verified)


def _import_pooch() -> Any:
    try:
        import pooch
    except ImportError as error:
        raise DataError(
            f"The MNIST files are not on this machine, and downloading them needs pooch: "
            f"pip install 'gradsieve[lab]'. Or name the directory that holds them in the "
            f"environment variable {ENVIRONMENT}."
        ) from error
    return pooch
