"""What is kept of compiled functions, in places that are damaged, full or closed."""

import ast
import errno
import multiprocessing
import shutil
from pathlib import Path

import numba
import pytest
from numba.core.event import install_listener

from gradsieve.bucket import warm_up
from gradsieve.runtime import machine_code, notices
from gradsieve.runtime.compiled import compiled
from gradsieve.runtime.machine_code import MAGIC


def square_sum(number):
    total = 0
    for i in range(number):
        total += i * i
    return total


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(notices, "_told", set())
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    return next(machine_code.places())


def run():
    """Call the function as a process would that has just started; returns whether it compiled."""
    function = compiled(square_sum)
    assert function(10) == 285
    return bool(function.stats.cache_misses)


def kept(place):
    return sorted(place.glob("*.code"))


def test_the_second_process_loads(place, caplog):
    assert run()
    assert not run()
    assert not list(place.glob("*.part"))
    assert not caplog.messages


DAMAGES = {
    "empty": lambda data: b"",
    "cut in the checksum": lambda data: data[: len(MAGIC) + 7],
    "cut": lambda data: data[:-1],
    "longer": lambda data: data + b"\0",
    "zeros": lambda data: bytes(len(data)),
    "another version": lambda data: b"x" + data[1:],
    "flipped in the checksum": lambda data: flipped(data, len(MAGIC) + 3),
    "flipped at the start": lambda data: flipped(data, len(MAGIC) + 32),
    "flipped": lambda data: flipped(data, len(data) // 2),
    "flipped at the end": lambda data: flipped(data, len(data) - 1),
}


def flipped(data, at):
    return data[:at] + bytes([data[at] ^ 0x10]) + data[at + 1 :]


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_damaged_code_is_compiled_anew_and_told_once(place, caplog, damage):
    run()
    (file,) = kept(place)
    good = file.read_bytes()
    for _ in range(2):
        file.write_bytes(damage(good))
        assert run()
        assert not run()
    (message,) = caplog.messages
    assert "damaged" in message
    assert str(place) in message


def test_code_that_does_not_load_is_compiled_anew(place, caplog):
    """Its checksum is right; a numba that calls itself the same has written it."""
    run()
    (file,) = kept(place)
    code = machine_code.MachineCode(square_sum)
    for payload in (b"", b"no pickle", b"\x80\x04N."):
        code._write(file, payload)
        assert run()
        assert not run()
    assert len(caplog.messages) == 1


def test_a_folder_in_the_place_of_a_file(place, caplog):
    run()
    (file,) = kept(place)
    file.unlink()
    file.mkdir()
    assert run()
    assert "cannot be kept" in caplog.text


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO])
def test_a_full_disk_is_told_once(place, monkeypatch, caplog, number):
    def fails(*args):
        raise OSError(number, "no room")

    monkeypatch.setattr(Path, "write_bytes", fails)
    assert run()
    assert run()
    (message,) = caplog.messages
    assert "every start will compile anew" in message
    assert "NUMBA_CACHE_DIR" in message
    assert f"{place}: no room" in message
    assert not list(place.iterdir())


def test_a_place_that_cannot_be_made(tmp_path, monkeypatch, caplog, place):
    (tmp_path / "file").touch()
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path / "file"))
    assert run()
    assert run()
    assert len(caplog.messages) == 1
    assert "NUMBA_CACHE_DIR" in caplog.text


def test_a_read_only_place_is_read_and_another_written(place, tmp_path, monkeypatch):
    closed, opened = tmp_path / "closed", tmp_path / "opened"
    write = Path.write_bytes

    def write_bytes(path, data):
        if closed in path.parents:
            raise OSError(errno.EROFS, "read-only")
        return write(path, data)

    monkeypatch.setattr(machine_code, "places", lambda: iter([closed, opened]))
    monkeypatch.setattr(Path, "write_bytes", write_bytes)
    assert run()
    assert not run()
    assert kept(opened)
    shutil.copytree(opened, closed, dirs_exist_ok=True)
    shutil.rmtree(opened)
    assert not run()


def test_without_a_cache_dir_code_lies_with_the_package_or_the_user(place, monkeypatch):
    monkeypatch.setattr(numba.config, "CACHE_DIR", "")
    assert next(machine_code.places()) == machine_code.PACKAGE / "__pycache__"
    assert len(list(machine_code.places())) == 2


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A copy of the sources, in the place of the package."""
    copy = tmp_path / "gradsieve"
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(machine_code.PACKAGE, copy, ignore=ignored)
    monkeypatch.setattr(machine_code, "PACKAGE", copy)
    machine_code.sources.cache_clear()
    yield copy
    machine_code.sources.cache_clear()


@pytest.mark.parametrize("change", ["codec/bits.py", "sieve/tile.py", "runtime/compiled.py", "new"])
def test_code_of_other_sources_is_stale(place, package, change):
    place = next(machine_code.places())
    run()
    (before,) = kept(place)
    if change == "new":
        (package / "codec" / "new.py").touch()
    else:
        with (package / change).open("a") as file:
            file.write("# changed\n")
    machine_code.sources.cache_clear()
    assert run()
    assert not run()
    (after,) = kept(place)
    assert before.name != after.name
    assert not before.exists()


def test_sources_in_an_archive_are_compiled_at_every_start(place, package, caplog):
    shutil.rmtree(package)
    machine_code.sources.cache_clear()
    assert run()
    assert run()
    assert "sources of the package cannot be read" in caplog.text


def test_another_processor_numba_or_option_has_code_of_its_own(place, monkeypatch):
    codegen = type(compiled(square_sum).targetctx.codegen())
    run()
    for owner, name, value in (
        (codegen, "magic_tuple", lambda self: ("another processor",)),
        (numba, "__version__", "0.99"),
        (numba.config, "BOUNDSCHECK", 1),
    ):
        with monkeypatch.context() as patched:
            patched.setattr(owner, name, value)
            assert run()
            assert not run()
        assert not run()


def test_all_that_is_compiled_is_in_the_key():
    """Every file with a compiled function, and what of the package it imports, and so on."""
    package = machine_code.PACKAGE
    files = [
        file
        for file in package.rglob("*.py")
        if {"compiled", "intrinsic"} & set(decorators(ast.parse(file.read_text())))
    ]
    assert len(files) > 10
    seen = set()
    while files:
        file = files.pop()
        if file not in seen and file.exists():
            seen.add(file)
            files += [
                package.parent.joinpath(*name.split(".")).with_suffix(".py")
                for name in imported(file)
            ]
    # It says nothing that is compiled.
    seen -= {package / "errors.py"}
    assert seen <= set(machine_code.source_files())


def decorators(tree):
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    names = [name for function in functions for name in function.decorator_list]
    return [name.id for name in names if isinstance(name, ast.Name)]


def imported(file):
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module.startswith("gradsieve"):
            yield node.module
            yield from (f"{node.module}.{name.name}" for name in node.names)


def start_cold(number):
    return [run(), run()]


def test_processes_that_start_together_on_nothing(place):
    with multiprocessing.get_context("fork").Pool(4) as pool:
        answers = pool.map(start_cold, range(8), chunksize=1)
    assert not any(compiled_again for _, compiled_again in answers)
    assert len(list(place.iterdir())) == 1


def test_only_compiling_is_called_compiling(place, monkeypatch, caplog):
    monkeypatch.setattr(warm_up, "NOTICE_AFTER", 0.0)
    with install_listener("numba:compile", warm_up.Told()):
        run()
    (message,) = caplog.messages
    assert "compiling for this processor" in message
    notices._told.clear()
    with install_listener("numba:compile", warm_up.Told()):
        run()
    assert len(caplog.messages) == 1


def test_quick_compiling_is_not_told(place, caplog):
    with install_listener("numba:compile", warm_up.Told()):
        run()
    assert not caplog.messages


def test_what_is_stale_and_cannot_be_removed_does_no_harm(tmp_path):
    """A directory here, another user's file where nobody may remove those of others."""
    (tmp_path / "stale.code").mkdir()
    machine_code.remove(tmp_path / "stale.code")
    machine_code.remove(tmp_path / "gone.code")
    assert (tmp_path / "stale.code").is_dir()
