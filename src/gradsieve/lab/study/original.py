"""What the original study reported, beside the records of this one."""

from collections.abc import Sequence

from gradsieve.lab.report.page import Table
from gradsieve.lab.report.series import mean_of
from gradsieve.lab.report.source import Run
from gradsieve.lab.study.variants import COUNTED_AFTER, ORIGINAL_STEPS

TRAINING_ACCURACY = {50: 0.84, 200: 0.80, 550: 0.96, 950: 1.00}
"""Accuracy on the batch of the step after so many steps."""
TEST_ACCURACY = 0.9635


def original_table(shown: Sequence[Sequence[Run]], steps: int) -> Table:
    """Return a row for each step and one for the test, of the original and the means of `shown`."""
    headings = ["accuracy", "original", *(runs[0].title for runs in shown)]
    rows = []
    for after in COUNTED_AFTER[1:]:
        step = round(after * steps / ORIGINAL_STEPS)
        ours = [mean_of(accuracy_at(run, step) for run in runs) for runs in shown]
        name = f"training, step {step + 1}"
        rows.append([name, f"{TRAINING_ACCURACY[after]:.2f}", *map(in_digits, ours)])
    ours = [mean_of(run.result.get("metric") for run in runs) for runs in shown]
    rows.append(["test, at the end", f"{TEST_ACCURACY:.4f}", *map(in_digits, ours)])
    return headings, rows


def in_digits(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def accuracy_at(run: Run, step: int) -> object:
    return next((line.get("accuracy") for line in run.steps if line["step"] == step), None)
