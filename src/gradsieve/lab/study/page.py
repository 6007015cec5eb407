"""The page of the study: five parts, then all runs to explore, with numbers from the records."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gradsieve.lab.charts import write_chart
from gradsieve.lab.report.distribution import drawn, percent_in_words
from gradsieve.lab.report.figure import Figure
from gradsieve.lab.report.figures import metric_figure
from gradsieve.lab.report.histogram_figure import histogram_figure
from gradsieve.lab.report.page import Section, Table
from gradsieve.lab.report.report import Steps, steps_of, training_figures, write_page
from gradsieve.lab.report.series import Row, grouped, layer_rows, mean_of
from gradsieve.lab.report.source import Run, Source
from gradsieve.lab.report.summary import sentences, summary_table
from gradsieve.lab.runs.throughput import Throughput
from gradsieve.lab.study.distributions import SHARE_HEADINGS, grids, share_rows
from gradsieve.lab.study.figures import (
    bottleneck_figure,
    rates,
    scale_figures,
    test_figure,
    trend_figure,
    waiting_figure,
)
from gradsieve.lab.study.original import original_table
from gradsieve.lab.study.variants import (
    BY_ITSELF,
    DROPPING,
    LEVELS,
    ORIGINAL_STEPS,
    PLAIN,
    SCALES,
    SIGMA,
    STABLE_SCALE,
    UNSENT_MEAN,
    Study,
    Variant,
)
from gradsieve.recording.histogram import overall

LARGEST_LAYER = "dense1.weight"
"""It holds 98 % of the parameters."""
DISTRIBUTED = (PLAIN, *SIGMA.values())
"""The variants whose distributions are described in words and drawn as files."""
FLOAT32_BITS = 32

Groups = dict[str, list[Run]]


def write_study(study: Study, source: Source, throughput: Throughput) -> Path:
    """Write the page, with each figure beside it as PNG and SVG; return the page's path."""
    groups = grouped(source.runs)
    shapes = drawn(groups)
    steps, tested = steps_of(groups), tests(groups)
    sections = [
        Section(paragraphs=sentences(groups), tables={"Summary": summary_table(groups)}),
        bottleneck(groups, throughput),
        distributions(groups, shapes, study.steps),
        trends(groups),
        accuracies(groups, steps, tested),
        adjusted(groups, steps, tested),
        Section(
            title="Explore every run",
            paragraphs=["All figures below follow the choices at the top of the page."],
            figures=training_figures(groups, steps),
        ),
    ]
    for title in have(groups, DISTRIBUTED):
        write_grids(groups[title][0], study.out)
    return write_page("Thresholds on gradients: the MNIST study", sections, shapes, study.out)


def have(groups: Groups, settings: Sequence[Variant]) -> list[str]:
    return [variant.title for variant in settings if variant.title in groups]


def mean_result(runs: Sequence[Run], field: str) -> float:
    return statistics.fmean(run.result[field] for run in runs)


def bottleneck(groups: Groups, throughput: Throughput) -> Section:
    plain = groups[PLAIN.title]
    numel = sum(plain[0].parameters.values())
    limit, step = mean_result(plain, "limit_seconds"), mean_result(plain, "step_seconds")
    asked = throughput.asked_bits_per_second
    theory = None if asked is None else asked / FLOAT32_BITS
    wanted = numel / limit
    sent = {
        title: mean_result(runs, "bytes_per_step") / 4 / mean_result(runs, "step_seconds") / 1e6
        for title, runs in groups.items()
    }
    carried = throughput.elements_per_second
    paragraphs = [
        f"The link carries {carried / 1e6:.1f} million float32 values a second each way, "
        f"measured{in_theory(theory)}. The network has {numel:,} parameters and computes a step "
        f"in {1000 * limit:.0f} ms when it waits for nobody: it wants {wanted / 1e6:.1f} million "
        f"values a second, {wanted / carried:.2f} times what the link carries.",
        f"With plain DDP a step takes {1000 * step:.0f} ms, of which "
        f"{100 * (1 - limit / step):.0f} % is waiting for the exchange.",
    ]
    waits = [
        {"run": title, "share": 100 * max(0.0, 1 - 1 / mean_result(runs, "ratio"))}
        for title, runs in groups.items()
    ]
    return Section(
        title="1. The bottleneck",
        paragraphs=paragraphs,
        figures=[
            bottleneck_figure(rates(sent, theory and theory / 1e6, carried / 1e6, wanted / 1e6)),
            waiting_figure(waits),
        ],
    )


def in_theory(rate: float | None) -> str:
    return "" if rate is None else f" ({rate / 1e6:.2f} million in theory)"


def distributions(groups: Groups, shapes: Mapping[str, Any], steps: int) -> Section:
    shown = [groups[title] for title in have(groups, DISTRIBUTED)]
    shares = {
        f"Shares beyond standard deviations, {runs[0].title}": (
            SHARE_HEADINGS,
            share_rows(runs[0].counted),
        )
        for runs in shown
        if runs[0].counted
    }
    return Section(
        title="2. Distributions",
        paragraphs=[
            *gradients_in_words(groups),
            "The histograms below follow the choices at the top: run, layer, what is counted, and "
            "the sampled step. Those of every layer and step lie beside the page, as "
            "distribution-*.png.",
            "Training accuracy is that of one batch of 50 images on the first rank, a mean over "
            "seeds; the original's is of one run."
            + ("" if steps == ORIGINAL_STEPS else NOT_COMPARABLE.format(steps=steps)),
        ],
        figures=[histogram_figure(shapes)] if shapes else [],
        tables={"Accuracy, beside the original's": original_table(shown, steps)},
        long_tables=shares,
    )


NOT_COMPARABLE = (
    " These runs have {steps} steps, and are looked at after the same parts of them as the "
    f"original's {ORIGINAL_STEPS:,}: their numbers do not compare with its."
)
NORMAL_BEYOND = (31.7, 4.6)
"""The % of a normal distribution beyond one and two standard deviations."""


def gradients_in_words(groups: Groups) -> list[str]:
    """Say what a threshold of standard deviations leaves of a rank's gradients."""
    run = groups[SIGMA[1].title][0]
    if not run.counted:
        return []
    last = run.counted[-1]
    whole = overall(last.histograms["gradient"].values())
    weights = [overall(c.histograms["weight"].values()) for c in (run.counted[0], last)]
    one, two = (percent_in_words(whole.share_beyond(k)) for k in (1, 2))
    return [
        f"After {last.step} steps of “{run.title}” {one} of all gradients lie beyond ±1 σ and "
        f"{two} beyond ±2 σ (of a normal distribution {NORMAL_BEYOND[0]} % and "
        f"{NORMAL_BEYOND[1]} %): what a threshold of one or two deviations would leave to send. "
        f"The deviation of all weights went from {weights[0].deviation:.4f} to "
        f"{weights[1].deviation:.4f}."
    ]


def trends(groups: Groups) -> Section:
    figures = []
    for k, variant in SIGMA.items():
        if variant.title in groups:
            rows = layer_rows({variant.title: groups[variant.title]})
            words = fall_in_words(rows)
            figures.append(trend_figure(rows, f"{k} σ", f"sigma-{k}", words))
    return Section(title="3. Thresholds over the steps", figures=figures)


def fall_in_words(rows: Sequence[Row]) -> str:
    """Say how the threshold of the largest layer moved, and how far layers lie apart at the end."""
    values = [row["threshold"] for row in rows if row["layer"] == LARGEST_LAYER]
    tenth = max(1, len(values) // 10)
    first, last = mean_of(values[:tenth]), mean_of(values[-tenth:])
    ends = [row["threshold"] for row in rows if row["step"] == rows[-1]["step"]]
    known = [threshold for threshold in ends if threshold]
    if first is None or last is None or not known:
        return ""
    return (
        f"The threshold of {LARGEST_LAYER} went from {first:.2g}, on average over the first tenth "
        f"of the steps, to {last:.2g} over the last; at the end the largest threshold is "
        f"{max(known) / min(known):.0f} times the smallest."
    )


def tests(groups: Groups) -> list[Row]:
    return [
        {"run": title, "accuracy": run.result["metric"]}
        for title, runs in groups.items()
        for run in runs
        if run.result.get("metric") is not None
    ]


def accuracies(groups: Groups, steps: Steps, tested: Sequence[Row]) -> Section:
    titles = have(groups, [PLAIN, *SIGMA.values(), *DROPPING.values()])
    return Section(
        title="4. Accuracy: dropping and accumulating",
        paragraphs=[
            "What is pruned is dropped, or kept and added to the next gradient. All values travel "
            "exactly, so that the threshold alone differs."
        ],
        figures=[
            accuracy_figure(steps, titles, "rule-accuracy"),
            test_figure(tested, titles, "rule-test"),
        ],
        tables={"Rules": comparison(groups, titles)},
    )


def accuracy_figure(steps: Steps, titles: Sequence[str], name: str) -> Figure:
    column = steps.column("accuracy")
    return metric_figure(steps.rows, "accuracy", column, only=titles, name=name)


def adjusted(groups: Groups, steps: Steps, tested: Sequence[Row]) -> Section:
    titles = have(groups, [UNSENT_MEAN[scale] for scale in SCALES])
    layers = [
        row
        for row in layer_rows({title: groups[title] for title in titles})
        if row["layer"] == LARGEST_LAYER
    ]
    beside = have(
        groups,
        [PLAIN, *SIGMA.values(), UNSENT_MEAN[STABLE_SCALE], *LEVELS.values(), BY_ITSELF],
    )
    return Section(
        title="5. The adjusted threshold",
        paragraphs=[
            "The threshold is set anew in every step: a multiple (the scale) of the mean magnitude "
            "of what the step before did not send; what is not sent accumulates.",
            *collapse_in_words(groups),
        ],
        figures=[
            *scale_figures(layers, steps.rows, titles, LARGEST_LAYER),
            accuracy_figure(steps, beside, "adjusted-accuracy"),
            test_figure(tested, beside, "adjusted-test"),
        ],
        tables={
            "Scales": comparison(groups, titles),
            "Beside other rules": comparison(groups, beside),
        },
    )


def collapse_in_words(groups: Groups) -> list[str]:
    """Say what happened at scale 1, the rule as first proposed."""
    runs = groups.get(UNSENT_MEAN[1].title)
    told = [
        (line["step"], line["thresholds"].get(LARGEST_LAYER) or 0.0, line["density"])
        for line in (runs[0].steps if runs else [])
        if line.get("thresholds")
    ]
    if not told:
        return []
    (_, first, _), (_, last, sent) = told[0], told[-1]
    small = next((step for step, threshold, _ in told if threshold < COLLAPSED * first), None)
    if small is None:
        return [
            f"With scale 1, the rule as first proposed, the threshold of {LARGEST_LAYER} went from "
            f"{first:.3g} to {last:.3g}."
        ]
    return [
        f"With scale 1, the rule as first proposed, the threshold collapses: that of "
        f"{LARGEST_LAYER} was below a thousandth of its first value at step {small}, and "
        f"{100 * sent:.0f} % of all elements were sent in the last step. Near zero what is not "
        "sent is spread evenly between 0 and the threshold, so that its mean, the next threshold, "
        "is half of it, and so on."
    ]


COLLAPSED = 1e-3


def comparison(groups: Groups, titles: Sequence[str]) -> Table:
    return summary_table({title: groups[title] for title in titles})


def write_grids(run: Run, out: Path) -> None:
    """Write the histograms of every layer and sampled step, with a file for each kind."""
    for kind, specification in grids(run.title, run.counted).items():
        name = f"distribution-{Path(run.path).parent.name.partition('-seed-')[0]}-{kind}"
        for ending in ("png", "svg"):
            write_chart(specification, out / f"{name}.{ending}")
