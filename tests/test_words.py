"""What the README and the pages say: figures that stand in the data, links that lead somewhere."""

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
METHODS = ("ddp", "fp16", "powersgd:1", "sieve")


def without_code(text):
    return re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)


def anchors(page):
    """GitHub's anchors of the headings of a page."""
    headings = re.findall(r"^#+ +(.*)$", without_code(page.read_text()), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_readmes_table_is_what_bench_step_measured():
    rows = json.loads((ROOT / "docs" / "data" / "steps.json").read_text())
    measured = {(row["link"], row["workload"], row["method"]): row for row in rows}
    lines = re.findall(
        r"^\| (\d+ [GM]bit/s) \| `(\w+)`.*? \| (.*) \|$", (ROOT / "README.md").read_text(), re.M
    )
    assert len(lines) == 8
    for link, workload, cells in lines:
        wanted = [measured[f"2 ranks, {link} each way (tbf)", workload, m] for m in METHODS]
        shown = cells.replace("*", "").split(" | ")
        assert shown == [f"{row['ratio']:.2f} ({row['metric']:.3f})" for row in wanted]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", without_code(page.read_text())):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        assert linked.exists(), target
        if anchor:
            assert anchor in anchors(linked), target
