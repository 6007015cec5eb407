"""The pages on frameworks show scripts that run as they stand."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPTS = ROOT / "examples" / "integrations"
TORCHRUN = [str(Path(sys.executable).with_name("torchrun")), "--standalone", "--nproc-per-node=2"]
LAUNCHED_BY = {
    "lightning": [sys.executable],
    "accelerate": TORCHRUN,
}
"""How the script of each framework is started on two ranks."""


@pytest.mark.parametrize("script", sorted(SCRIPTS.glob("*.py")), ids=lambda script: script.name)
def test_a_page_shows_the_whole_script(script):
    pages = [page.read_text() for page in (ROOT / "docs").glob("*.md")]
    assert any(f"```python\n{script.read_text()}```\n" in page for page in pages)


@pytest.mark.parametrize("framework", LAUNCHED_BY)
def test_the_script_trains_on_two_ranks(framework, tmp_path):
    if find_spec(framework) is None:
        pytest.skip(f"{framework} is missing: make test-integrations")
    ran = subprocess.run(
        [*LAUNCHED_BY[framework], str(SCRIPTS / f"{framework}_train.py")],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"GLOO_SOCKET_IFNAME": "lo"},
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert "144 steps (" in ran.stdout
    assert float(ran.stdout.split("test accuracy")[1].split()[0]) > 0.7
