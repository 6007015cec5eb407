"""Pages in headless Chromium, which may fetch nothing."""

import html
import json
import re
import shutil
import subprocess

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
needs_chromium = pytest.mark.skipif(
    CHROMIUM is None, reason="Chromium is not installed (apt install chromium)"
)
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-sync",
    "--disable-background-networking",
    "--disable-component-update",
    "--virtual-time-budget=30000",
    "--window-size=1440,1000",
    "--enable-logging=stderr",
    "--host-resolver-rules=MAP * ~NOTFOUND",
]
HELPERS = """
const tell = (outcome) => {
  const place = document.createElement("pre");
  place.id = "outcome";
  place.textContent = JSON.stringify(outcome);
  document.body.append(place);
};
const sleep = (milliseconds) => new Promise((done) => setTimeout(done, milliseconds));
const until = async (holds) => {
  for (let turn = 0; turn < 100 && !holds(); turn++) await sleep(50);
  return Boolean(holds());
};
"""


def run_in_browser(path, profile):
    ran = subprocess.run(
        [CHROMIUM, *FLAGS, f"--user-data-dir={profile}", "--dump-dom", path.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert "CONSOLE" not in ran.stderr
    told = re.search(r'<pre id="outcome">(.*?)</pre>', ran.stdout, re.DOTALL)
    assert told is not None, "the script of the test has not ended"
    return json.loads(html.unescape(told[1]))


def try_out(page, tmp_path, script):
    """Run a script in the page; gives what it tells."""
    text = page.read_text(encoding="utf-8")
    added = f'<script type="module">{HELPERS}{script}</script></body>'
    changed = tmp_path / "page.html"
    changed.write_text("".join([*text.rpartition("</body>")[:1], added, "</html>"]), "utf-8")
    return run_in_browser(changed, tmp_path / "profile")
