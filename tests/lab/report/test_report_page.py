"""The page in a real browser."""

import html
import re

import pytest
from browser import HELPERS, needs_chromium, run_in_browser, try_out
from typer.testing import CliRunner
from written import LAYERS, write_rows, write_run

from gradsieve.lab.cli import app
from gradsieve.recording.files import RECORDS, RecordFile


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
const LOSS = "training-loss";
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
await changes("from", () => set("from-step", 30), LOSS, "layer-threshold", "density");
await changes("all", () => document.getElementById("all-steps").click(), LOSS, "density");
const radio = (value) => document.querySelector(`input[value=${value}]`).click();
await changes("log", () => radio("log"), LOSS, "histogram");
await changes("linear", () => radio("linear"), LOSS, "histogram", "layer-threshold");
const colours = () => {
  const words = document.querySelector("#chart-density .role-axis-title text");
  return [getComputedStyle(document.body).backgroundColor, getComputedStyle(words).fill];
};
const light = colours();
document.getElementById("theme").click();
outcome.theme = root.dataset.theme === "dark" && colours().every((each, n) => each !== light[n]);
set("run", "2 σ");
set("kind", "residual");
set("run", "plain DDP");
await sleep(300);
const told = document.getElementById("sampled-words").textContent;
outcome.nothing = told.includes("nothing was counted");
outcome.empty = !document.querySelector("#chart-histogram .mark-rect path[d*='v']");
set("run", "2 σ");
set("from-step", 5000);
outcome.clamped = Number(document.getElementById("from-step").value) < 60;
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
}, LOSS, "density");
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
    kept = ("words", "steps", "controls")
    words, steps, controls = (outcome.pop(name) for name in kept)
    assert [name for name, holds in outcome.items() if not holds] == []
    assert words.startswith("2 σ, gradient of whole model, step 0: σ = ")
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


def test_metrics_may_have_any_name(tmp_path):
    records = RecordFile(tmp_path / RECORDS, {})
    for step in range(5):
        numbers = {"val/loss": 1.0, "val.loss": 2.0, "run": 3.0, "density": 0.5, "über'": 4.0}
        records.write({"step": step, **numbers})
    records.close()
    outcome = CliRunner().invoke(app, ["report", str(tmp_path)], catch_exceptions=False)
    assert outcome.exit_code == 0
    names = {path.stem for path in (tmp_path / "report").glob("training-*.png")}
    assert names == {
        "training-val-loss",
        "training-val-loss-metric1",
        "training-run",
        "training-ber",
    }


def test_titles_are_words_and_no_markup(tmp_path):
    write_run(tmp_path, "</script><b>bold", steps=30)
    outcome = CliRunner().invoke(app, ["report", str(tmp_path)], catch_exceptions=False)
    assert outcome.exit_code == 0
    text = (tmp_path / "report" / "index.html").read_text(encoding="utf-8")
    assert "<b>bold" not in text
    assert "&lt;/script&gt;&lt;b&gt;bold" in text
