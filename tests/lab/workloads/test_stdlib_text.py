"""Which sources are read, and that no file is in both parts."""

from pathlib import Path

import pytest
import torch

from gradsieve.lab.workloads.mnist import DataError
from gradsieve.lab.workloads.stdlib_text import (
    EXCLUDED,
    FEWEST_FILES,
    Text,
    is_held_out,
    load_stdlib_text,
)

NAMES = [f"{package}/m{number}.py" for package in ("a", "b/c") for number in range(200)]


def write(root: Path, names: list[str]) -> None:
    """Files of two lines, each of which names its file."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"# {name}\n# {name}\n")


def lines(part: torch.Tensor) -> list[str]:
    return part.numpy().tobytes().decode().splitlines()


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Text:
    root = tmp_path_factory.mktemp("stdlib")
    write(root, NAMES)
    write(root, [f"{directory}/left_out.py" for directory in EXCLUDED])
    write(root, ["a/test/left_out.py", "a/data.txt"])
    return load_stdlib_text(str(root))


def test_every_source_is_whole_in_one_part_and_in_no_other(text: Text) -> None:
    train, held_out = lines(text.train), lines(text.held_out)
    assert not set(train) & set(held_out)
    assert sorted(train + held_out) == sorted(2 * [f"# {name}" for name in NAMES])


def test_files_follow_one_another_in_the_order_of_their_names(text: Text) -> None:
    for part in text:
        assert lines(part) == sorted(lines(part))


def test_the_name_alone_decides(text: Text) -> None:
    assert set(lines(text.held_out)) == {f"# {name}" for name in NAMES if is_held_out(name)}


def test_a_tenth_is_held_out_and_always_the_same() -> None:
    names = [f"{number}.py" for number in range(10_000)]
    # Four standard errors of a share of 0.1.
    assert sum(map(is_held_out, names)) / len(names) == pytest.approx(0.1, abs=0.012)
    # Another choice would make results incomparable with earlier ones.
    known = ["abc.py", "ast.py", "hmac.py", "ipaddress.py", "json/decoder.py", "typing.py"]
    assert [name for name in known if is_held_out(name)] == ["hmac.py", "ipaddress.py"]


def test_the_running_python_has_enough_of_both_parts() -> None:
    text = load_stdlib_text()
    assert text.train.dtype == text.held_out.dtype == torch.uint8
    assert len(text.train) > 5_000_000
    assert 0.03 < len(text.held_out) / len(text.train) < 0.3
    assert load_stdlib_text() is text


def test_too_few_sources_are_refused_with_the_directory(tmp_path: Path) -> None:
    write(tmp_path, NAMES[: FEWEST_FILES - 1])
    with pytest.raises(DataError) as refusal:
        load_stdlib_text(str(tmp_path))
    assert f"{tmp_path} holds {FEWEST_FILES - 1} Python sources" in str(refusal.value)
    write(tmp_path, NAMES[FEWEST_FILES - 1 : FEWEST_FILES])
    assert len(load_stdlib_text(str(tmp_path)).train) > 0
