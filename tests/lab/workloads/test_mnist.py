"""The data: where it is found, and the clear error for everything that can be wrong with it."""

import builtins
import functools
import gzip
import http.server
import shutil
import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from gradsieve.lab.workloads import mnist
from gradsieve.lab.workloads.mnist import DataError, load_mnist, parse_idx

IMAGES = "t10k-images-idx3-ubyte"
LABELS = "t10k-labels-idx1-ubyte"
CHECKOUT = Path(__file__).resolve().parents[3] / "data" / "mnist"

pytestmark = pytest.mark.skipif(not CHECKOUT.is_dir(), reason="no data/mnist beside these tests")


@pytest.fixture(autouse=True)
def no_named_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(mnist.ENVIRONMENT, raising=False)


@pytest.fixture
def copies(tmp_path: Path) -> Path:
    """A directory with the two test files, for a test to damage."""
    folder = tmp_path / "copies"
    folder.mkdir()
    for name in (IMAGES, LABELS):
        # Not copy(): the originals may be read-only.
        shutil.copyfile(CHECKOUT / f"{name}.gz", folder / f"{name}.gz")
    return folder


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty user cache, on a machine that has no checkout and reaches loopback only."""
    folder = tmp_path / "cache"
    pooch = pytest.importorskip("pooch")
    monkeypatch.setattr(pooch, "os_cache", lambda project: folder)
    monkeypatch.setattr(mnist, "_CHECKOUT", tmp_path / "nowhere")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    monkeypatch.setattr(mnist, "MIRRORS", (f"http://127.0.0.1:{port}/",))
    return folder


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *arguments: object) -> None:
        pass


@pytest.fixture
def mirror(copies: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The directory of a mirror on loopback, asked after one that does not answer."""
    handler = functools.partial(QuietHandler, directory=str(copies))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        here = f"http://127.0.0.1:{server.server_port}/"
        monkeypatch.setattr(mnist, "MIRRORS", (*mnist.MIRRORS, here))
        yield copies
        server.shutdown()
        thread.join()


def unpack(folder: Path, name: str) -> Path:
    packed = folder / f"{name}.gz"
    (folder / name).write_bytes(gzip.decompress(packed.read_bytes()))
    packed.unlink()
    return folder / name


@pytest.mark.parametrize(("train", "count"), [(True, 60_000), (False, 10_000)])
def test_shapes_types_and_ranges(train: bool, count: int) -> None:
    images, labels = load_mnist(train)
    assert images.shape == (count, 1, 28, 28)
    assert images.dtype == torch.float32
    assert (images.min().item(), images.max().item()) == (0, 1)
    assert labels.shape == (count,)
    assert labels.dtype == torch.int64
    assert labels.unique().tolist() == list(range(10))


def test_first_takes_the_head_of_both() -> None:
    split = load_mnist(train=False)
    head = split.first(7)
    assert torch.equal(head.images, split.images[:7])
    assert torch.equal(head.labels, split.labels[:7])


def test_unpacked_files_load_like_packed_ones(copies: Path) -> None:
    packed = load_mnist(train=False, directory=copies)
    unpack(copies, IMAGES)
    unpack(copies, LABELS)
    unpacked = load_mnist(train=False, directory=copies)
    assert torch.equal(packed.images, unpacked.images)
    assert torch.equal(packed.labels, unpacked.labels)


def test_an_argument_comes_before_the_environment_and_that_before_the_checkout(
    copies: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(mnist.ENVIRONMENT, str(tmp_path / "absent"))
    load_mnist(train=False, directory=copies)
    with pytest.raises(DataError, match="absent"):
        load_mnist(train=False)
    monkeypatch.setenv(mnist.ENVIRONMENT, str(copies))
    monkeypatch.setattr(mnist, "_CHECKOUT", tmp_path / "nowhere")
    load_mnist(train=False)


def test_missing_file(copies: Path) -> None:
    (copies / f"{LABELS}.gz").unlink()
    with pytest.raises(DataError, match=rf"copies has neither {LABELS}.gz nor .*GRADSIEVE_DATA"):
        load_mnist(train=False, directory=copies)


def test_missing_directory(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"absent is not a directory.*GRADSIEVE_DATA"):
        load_mnist(train=False, directory=tmp_path / "absent")


def test_wrong_checksum(copies: Path) -> None:
    path = unpack(copies, LABELS)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    expected = rf"{LABELS}: the unpacked content \(10,008 bytes\) has SHA-256 .* Replace it"
    with pytest.raises(DataError, match=expected):
        load_mnist(train=False, directory=copies)


def test_the_wrong_one_of_the_four_files(copies: Path) -> None:
    shutil.copyfile(CHECKOUT / "train-labels-idx1-ubyte.gz", copies / f"{LABELS}.gz")
    with pytest.raises(DataError, match=r"65a50cbb.*but t10k-labels-idx1-ubyte has ff7bcfd4"):
        load_mnist(train=False, directory=copies)


@pytest.mark.parametrize("length", [3, 1000, -4])
def test_truncated_archive(copies: Path, length: int) -> None:
    path = copies / f"{IMAGES}.gz"
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(DataError, match=r"images-idx3-ubyte.gz: .*truncated.* Replace it"):
        load_mnist(train=False, directory=copies)


@pytest.mark.parametrize("position", [3, 12, 2000, -6])
def test_damaged_archive(copies: Path, position: int) -> None:
    path = copies / f"{LABELS}.gz"
    content = bytearray(path.read_bytes())
    content[position] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"labels-idx1-ubyte.gz: .* Replace it"):
        load_mnist(train=False, directory=copies)


def test_truncated_unpacked_file(copies: Path) -> None:
    path = unpack(copies, LABELS)
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(DataError, match=r"\(5,000 bytes\) has SHA-256"):
        load_mnist(train=False, directory=copies)


def test_unreadable_file(copies: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(DataError, match=r"cannot be read .*Permission denied"):
        load_mnist(train=False, directory=copies)


def test_a_download_fills_the_cache_once(cache: Path, mirror: Path) -> None:
    downloaded = load_mnist(train=False)
    assert torch.equal(downloaded.images, load_mnist(train=False, directory=mirror).images)
    (mirror / f"{IMAGES}.gz").unlink()
    load_mnist(train=False)


@pytest.mark.parametrize("damage", [b"<html>Please log in</html>", None])
def test_a_wrong_download_does_not_stay(cache: Path, mirror: Path, damage: bytes | None) -> None:
    path = mirror / f"{IMAGES}.gz"
    path.write_bytes(path.read_bytes()[:100_000] if damage is None else damage)
    with pytest.raises(DataError, match=r"could not be downloaded(.|\n)*(SHA-256|truncated)"):
        load_mnist(train=False)
    assert list(cache.iterdir()) == []


def test_a_rotten_cached_file_is_fetched_again(cache: Path, mirror: Path) -> None:
    cache.mkdir()
    (cache / f"{LABELS}.gz").write_bytes(b"rotten")
    load_mnist(train=False)
    assert (cache / f"{LABELS}.gz").read_bytes() == (mirror / f"{LABELS}.gz").read_bytes()


def test_a_rotten_cached_file_without_network_is_removed(cache: Path) -> None:
    cache.mkdir()
    (cache / f"{IMAGES}.gz").write_bytes(b"rotten")
    with pytest.raises(DataError, match=r"\(removed\): the unpacked content \(6 bytes\)"):
        load_mnist(train=False)
    assert list(cache.iterdir()) == []


def test_a_file_that_the_mirror_lacks(cache: Path, mirror: Path) -> None:
    (mirror / f"{LABELS}.gz").unlink()
    with pytest.raises(DataError, match=r"labels-idx1-ubyte.gz: 404"):
        load_mnist(train=False)


def test_no_network(cache: Path) -> None:
    with pytest.raises(DataError) as caught:
        load_mnist(train=False)
    message = str(caught.value)
    assert f"{IMAGES}.gz could not be downloaded" in message
    assert "Check the network" in message
    assert mnist.ENVIRONMENT in message
    assert "127.0.0.1" in message


def test_without_pooch_the_extra_is_named(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = builtins.__import__

    def without_pooch(name: str, *arguments: object, **named: object) -> object:
        if name == "pooch":
            raise ImportError("No module named 'pooch'")
        return original(name, *arguments, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(builtins, "__import__", without_pooch)
    with pytest.raises(DataError, match=r"pip install 'gradsieve\[lab\]'.*GRADSIEVE_DATA"):
        load_mnist(train=False)


def idx(shape: tuple[int, ...], data: bytes, element_type: int = 8) -> bytes:
    return struct.pack(f">HBB{len(shape)}I", 0, element_type, len(shape), *shape) + data


def test_idx_is_read_in_row_major_order() -> None:
    array = parse_idx(idx((2, 3), bytes(range(6))), "small")
    assert array.dtype == np.uint8
    assert array.tolist() == [[0, 1, 2], [3, 4, 5]]


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "begins with nothing"),
        (b"PK\3\4 and so on", "begins with 50 4b 03 04"),
        (idx((2,), b"12345678", element_type=0x0D), "elements of type 0x0d"),
        (idx((), b""), "ends within its header: 4 bytes for 0 dimensions"),
        (idx((2, 3), b"")[:9], "ends within its header: 9 bytes for 2 dimensions"),
        (idx((2, 3), b"12345"), r"has 17 bytes; its header, shape \(2, 3\), asks for 18"),
        (idx((2, 3), b"1234567"), "has 19 bytes"),
        (idx((2**32 - 1,) * 3, b"1"), "asks for 79,"),
    ],
)
def test_idx_that_is_not_right(content: bytes, complaint: str) -> None:
    with pytest.raises(DataError, match=complaint):
        parse_idx(content, "some file")
