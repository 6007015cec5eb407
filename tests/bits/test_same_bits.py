"""The same bits, whoever compiles, on any processor, with any number of threads.

One process compiles everything, a second one loads it and goes on with the first one's checkpoint,
a third compiles for a processor without AVX-512.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import llvmlite.binding
import pytest

SECONDS = 300
"""A cold start takes half a minute of a processor that nobody else uses."""
HASWELL = {
    *("avx", "avx2", "fma", "bmi", "bmi2", "lzcnt", "popcnt", "f16c", "movbe"),
    *("sse3", "ssse3", "sse4.1", "sse4.2"),
}


def start(folder, cache, mode, **environment):
    return subprocess.Popen(
        [sys.executable, str(Path(__file__).parent / "process.py"), str(folder), mode],
        env=os.environ | {"NUMBA_CACHE_DIR": str(folder / cache), **environment},
        stdout=subprocess.PIPE,
        text=True,
    )


def answer(process):
    output, _ = process.communicate(timeout=SECONDS)
    assert process.returncode == 0
    return json.loads(output)


def has_avx2():
    try:
        return all(map(llvmlite.binding.get_host_cpu_features().get, HASWELL))
    except RuntimeError:
        return False


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bits")
    processes = {"cold": start(folder, "native", "cold")}
    if has_avx2():
        processes["haswell"] = start(
            folder,
            "haswell",
            "alone",
            NUMBA_CPU_NAME="haswell",
            NUMBA_CPU_FEATURES=",".join(f"+{name}" for name in sorted(HASWELL)),
        )
    try:
        found = {"cold": answer(processes["cold"])}
        processes["warm"] = start(folder, "native", "warm")
        return found | {name: answer(processes[name]) for name in list(processes)[1:]}
    finally:
        for process in processes.values():
            process.kill()
            process.wait()


def differing(one, other):
    return [name for name in one.keys() & other.keys() if one[name] != other[name]]


def test_the_process_that_compiles_and_one_that_loads(answers):
    """Frames and residuals of all codings, sums, moments, rotations, and a resumed training."""
    assert answers["cold"].keys() == answers["warm"].keys()
    assert {"rank 0", "rank 1"} < answers["cold"].keys()
    assert not differing(answers["cold"], answers["warm"])


def test_processors_with_and_without_avx512(answers):
    if "haswell" not in answers:
        pytest.skip("this processor has no AVX2")
    assert answers["cold"].keys() - answers["haswell"].keys() == {"rank 0", "rank 1"}
    assert not differing(answers["cold"], answers["haswell"])


def test_any_number_of_threads(answers):
    one = {name: bits for name, bits in answers["cold"].items() if "1 threads" in name}
    assert len(one) > 40
    for name, bits in one.items():
        assert answers["cold"][name.replace("1 threads", "2 threads")] == bits, name
