"""The page in a real browser."""

import html
import json
import re
import shutil
import subprocess

import pytest
from typer.testing import CliRunner
from written import LAYERS, write_rows, write_run

from gradsieve.cli import app

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


def write_page(directory, **options):
    write_run(directory / "a", "plain DDP", method="ddp", metric=0.95, **options)
    write_run(directory / "b", "2 σ", seed=1, **options)
    write_rows(directory / "steps.json")
    outcome = CliRunner().invoke(app, ["report", str(directory)], catch_exceptions=False)
    assert outcome.exit_code == 0, outcome.output
    return directory / "report" / "index.html"


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    return write_page(tmp_path_factory.mktemp("written"))


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


CONTROLS = """
const root = document.documentElement;
await until(() => root.dataset.drawn === "yes");
const drawn = (name) => document.getElementById(`chart-${name}`).innerHTML;
const set = (id, value) => {
  const control = document.getElementById(id);
  control.value = value;
  control.dispatchEvent(new Event("input"));
  control.dispatchEvent(new Event("change"));
};
const outcome = {};
const changes = async (what, act, ...names) => {
  const before = names.map(drawn);
  act();
  outcome[what] = await until(() => names.every((name, n) => drawn(name) !== before[n]));
  await sleep(200);
};
await changes("slider", () => set("sampled-step", 0), "histogram");
outcome.words = document.getElementById("sampled-words").textContent;
await changes("layer", () => set("layer", "two.weight"), "layer-threshold", "histogram");
await changes("kind", () => set("kind", "weight"), "histogram");
await changes("run", () => set("run", "plain DDP"), "layer-threshold", "histogram");
await changes("back", () => set("run", "2 σ"), "layer-threshold", "histogram");
await changes("from", () => set("from-step", 30), "loss", "layer-threshold", "density");
await changes("all", () => document.getElementById("all-steps").click(), "loss", "density");
const radio = (value) => document.querySelector(`input[value=${value}]`).click();
await changes("log", () => radio("log"), "loss", "histogram");
await changes("linear", () => radio("linear"), "loss", "histogram", "layer-threshold");
await changes("theme", () => document.getElementById("theme").click(), "loss");
outcome.theme = root.dataset.theme;
const box = () => document.querySelector("#chart-overview svg").getBoundingClientRect();
const point = (type, part) => new PointerEvent(type, {
  clientX: box().x + part * box().width, clientY: box().y + box().height / 3,
  bubbles: true, pointerId: 1, isPrimary: true, button: 0, buttons: 1,
});
document.querySelector("#chart-overview").scrollIntoView({ block: "center" });
await sleep(200);
await changes("drag", () => {
  const start = point("pointerdown", 0.3);
  document.elementFromPoint(start.clientX, start.clientY).dispatchEvent(start);
  for (const part of [0.4, 0.5, 0.6]) window.dispatchEvent(point("pointermove", part));
  window.dispatchEvent(point("pointerup", 0.6));
}, "loss", "density");
outcome.steps = ["from-step", "to-step"].map((id) => Number(document.getElementById(id).value));
const reachable = (control) => control.tabIndex >= 0 && !control.disabled;
outcome.controls = [...document.querySelectorAll("select, input, button")];
outcome.reachable = outcome.controls.every(reachable);
outcome.labelled = outcome.controls.every((each) => each.textContent || each.labels.length);
outcome.controls = outcome.controls.length;
outcome.captions = [...document.querySelectorAll("figcaption")].every((each) => each.textContent);
const pictures = [...document.querySelectorAll(".chart[role=graphics-document]")];
outcome.described = pictures.length > 9 && pictures.every((each) => each.ariaLabel);
tell(outcome);
"""


@needs_chromium
def test_every_control_changes_what_is_drawn(page, tmp_path):
    outcome = try_out(page, tmp_path, CONTROLS)
    kept = ("words", "theme", "steps", "controls")
    words, theme, steps, controls = (outcome.pop(name) for name in kept)
    assert [name for name, holds in outcome.items() if not holds] == []
    assert words.startswith("step 0: σ = ")
    assert theme == "dark"
    assert 10 < steps[0] < 30 < steps[1] < 45
    assert controls >= 10


WIDTHS = """
const frame = document.querySelector("iframe");
await until(() => frame.contentDocument?.documentElement?.dataset.drawn === "yes");
await sleep(300);
const root = frame.contentDocument.documentElement;
const charts = [...root.querySelectorAll(".chart svg")];
const edges = charts.map((chart) => chart.getBoundingClientRect().right);
tell({ page: root.scrollWidth, charts: Math.max(...edges), count: edges.length });
"""


@needs_chromium
@pytest.mark.parametrize("width", [380, 1440])
def test_the_page_fits_the_window(page, tmp_path, width):
    wrapper = tmp_path / "wrapper.html"
    inside = html.escape(page.read_text(encoding="utf-8"))
    wrapper.write_text(
        f'<!doctype html><body><iframe width="{width}" height="900" srcdoc="{inside}"></iframe>'
        f'<script type="module">{HELPERS}{WIDTHS}</script></body>',
        "utf-8",
    )
    found = run_in_browser(wrapper, tmp_path / "profile")
    assert found["page"] <= width
    assert found["charts"] <= width
    assert found["count"] >= 10


def test_nothing_is_loaded_from_elsewhere(page):
    text = page.read_text(encoding="utf-8")
    before_scripts = text.partition("<script")[0]
    assert "http" not in before_scripts
    assert not re.search(r"<(link|script)[^>]+(src|href)=", text)


def test_a_thousand_steps_of_eight_layers_take_less_than_five_megabytes(tmp_path):
    assert len(LAYERS) == 8
    path = write_page(tmp_path, steps=1000, histograms_every=50)
    assert path.stat().st_size < 5e6


def test_every_figure_is_a_file_too(page):
    figures = re.findall(r'id="chart-([\w-]+)"', page.read_text(encoding="utf-8"))
    assert len(figures) >= 10
    for name in figures:
        assert (page.parent / f"{name}.svg").read_text().startswith("<svg")
        assert (page.parent / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_titles_are_words_and_no_markup(tmp_path):
    write_run(tmp_path, "</script><b>bold", steps=30)
    outcome = CliRunner().invoke(app, ["report", str(tmp_path)], catch_exceptions=False)
    assert outcome.exit_code == 0
    text = (tmp_path / "report" / "index.html").read_text(encoding="utf-8")
    assert "<b>bold" not in text.replace("<\\/script><b>bold", "")
    assert "&lt;/script&gt;&lt;b&gt;bold" in text
