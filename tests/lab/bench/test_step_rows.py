"""What rounds of a timed method are put together to."""

import io
from dataclasses import replace

from rich.console import Console

from gradsieve.lab.bench.step import median_of, step_table
from gradsieve.lab.runs.config import RunResult

ROUND = RunResult(
    workload="mnist_cnn",
    link="2 ranks",
    ranks=2,
    method="local:every=5,sigma=2",
    step_seconds=0.2,
    limit_seconds=0.1,
    ratio=2.0,
    bytes_per_step=1e6,
    bits_per_parameter=0.5,
    metric=0.9,
    metric_name="test accuracy",
    steps=20,
    alone_seconds=0.19,
)


def printed(rows):
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(step_table(rows))
    return console.export_text()


def test_rounds_become_medians_and_the_spread_of_their_ratios():
    rounds = [ROUND, replace(ROUND, ratio=1.5, step_seconds=0.15), replace(ROUND, ratio=4.0)]
    row = median_of([replace(r, metric=place) for place, r in enumerate(rounds)])
    assert (row.ratio, row.lowest_ratio, row.highest_ratio, row.rounds) == (2.0, 1.5, 4.0, 3)
    assert row.step_seconds == 0.2
    assert row.metric == 0
    text = printed([row])
    assert "1.50–4.00" in text
    assert "1.053" in text


def test_without_local_steps_and_rounds_there_are_no_columns_for_them():
    text = printed([median_of([replace(ROUND, method="ddp", alone_seconds=None)])])
    assert "alone" not in text
    assert "spread" not in text
    assert "2.000" in text
