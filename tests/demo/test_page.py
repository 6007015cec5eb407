"""The demo's page in a real browser."""

import re
import shutil
import subprocess

import pytest

from gradsieve.demo.methods import SHOWN
from gradsieve.demo.page import write_page
from gradsieve.demo.plots import write_plots
from gradsieve.demo.table import Row
from gradsieve.runs.config import RunResult

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-sync",
    "--disable-background-networking",
    "--disable-component-update",
    "--virtual-time-budget=2000",
]


def row(method):
    record = {
        "loss": 1.0,
        "accuracy": 0.5,
        "density": 0.05,
        "rotate_seconds": 0.001,
        "select_seconds": 0.003,
        "encode_seconds": 0.001,
        "thresholds": {"dense1.weight": 0.01, "conv2.weight": None},
    }
    result = RunResult(
        workload="mnist_cnn",
        link="2 ranks, 1 Gbit/s each way (tbf)",
        ranks=2,
        method=method.method,
        step_seconds=0.12,
        limit_seconds=0.1,
        ratio=1.2,
        bytes_per_step=1e6,
        bits_per_parameter=3.0,
        metric=0.9 if method.exchanges else None,
        metric_name="test accuracy",
        steps=30,
    )
    return Row(method, result, [record | {"step": step} for step in range(30)])


@pytest.fixture
def page(tmp_path):
    rows = [row(method) for method in SHOWN]
    return write_page(rows, write_plots(rows, tmp_path), tmp_path)


def test_the_page_says_what_was_measured(page):
    text = page.read_text()
    assert "1.20 times the limit" in text
    assert "1 times fewer bytes" in text
    assert "<td>0.9000</td>" in text
    assert "<td>–</td>" in text


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed (apt install chromium)")
@pytest.mark.parametrize("width", [500, 1440])
def test_the_page_fits_the_window_and_logs_no_error(page, tmp_path, width):
    probe = "<script>document.title = document.documentElement.scrollWidth</script></body>"
    page.write_text(page.read_text().replace("</body>", probe))
    ran = subprocess.run(
        [
            CHROMIUM,
            *FLAGS,
            f"--user-data-dir={tmp_path / 'profile'}",
            f"--window-size={width},1000",
            "--enable-logging=stderr",
            "--dump-dom",
            page.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=90,
        check=True,
    )
    assert "CONSOLE" not in ran.stderr
    title = re.search(r"<title>(\d+)</title>", ran.stdout)
    assert title is not None
    assert int(title[1]) <= width
    assert ran.stdout.count("<svg") == 4
