"""The study's page: five parts, then every run to explore. Every number is from the records."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gradsieve.charts import write_chart
from gradsieve.recording.histogram import overall
from gradsieve.report.distribution import drawn
from gradsieve.report.figures import histogram_figure
from gradsieve.report.page import Section, Table
from gradsieve.report.report import training_figures, write_page
from gradsieve.report.series import Row, grouped, layer_rows, mean_of, metrics_of, step_rows
from gradsieve.report.source import Run, read_source
from gradsieve.report.summary import sentences, summary_table
from gradsieve.runs.probe import Probed, read_probed
from gradsieve.study.figures import (
    SHARE_HEADINGS,
    accuracy_figure,
    bottleneck_figure,
    grids,
    rates,
    scale_figures,
    share_rows,
    test_figure,
    trend_figure,
    waiting_figure,
)
from gradsieve.study.original import original_table
from gradsieve.study.settings import (
    BY_ITSELF,
    DROPPING,
    LEVELS,
    ORIGINAL_STEPS,
    PLAIN,
    SCALES,
    SIGMA,
    STABLE_SCALE,
    UNSENT_MEAN,
    Plan,
    Setting,
)

LARGEST_LAYER = "dense1.weight"
"""98 % of the parameters."""
DISTRIBUTED = (PLAIN, *SIGMA.values())
"""Whose distributions are told of in words and drawn as files."""
FLOAT32_BITS = 32

Groups = dict[str, list[Run]]


def write_study(plan: Plan) -> Path:
    """Returns the page's path; each figure lies beside it as PNG and SVG."""
    groups = grouped(read_source(plan.out / "runs").runs)
    probed = read_probed(plan.out / "probe" / "probe.json")
    shapes = drawn(groups)
    metrics = metrics_of(run for runs in groups.values() for run in runs)
    rows = step_rows(groups, metrics)
    sections = [
        Section(paragraphs=sentences(groups), tables={"Summary": summary_table(groups)}),
        bottleneck(groups, probed),
        distributions(groups, shapes, plan.steps),
        trends(groups),
        accuracies(groups, rows),
        adjusted(groups, rows),
        Section(
            title="Explore every run",
            paragraphs=["All figures below follow the choices at the top of the page."],
            figures=training_figures(groups),
        ),
    ]
    for title in have(groups, DISTRIBUTED):
        write_grids(groups[title][0], plan.out)
    return write_page("Thresholds on gradients: the MNIST study", sections, shapes, plan.out)


def have(groups: Groups, settings: Sequence[Setting]) -> list[str]:
    return [setting.title for setting in settings if setting.title in groups]


def mean_result(runs: Sequence[Run], field: str) -> float:
    return mean_of(run.result.get(field) for run in runs) or 0.0


def bottleneck(groups: Groups, probed: Probed) -> Section:
    plain = groups[PLAIN.title]
    numel = sum(plain[0].parameters.values())
    limit, step = mean_result(plain, "limit_seconds"), mean_result(plain, "step_seconds")
    asked = probed.asked_bits_per_second
    theory = None if asked is None else asked / FLOAT32_BITS
    wanted = numel / limit
    sent = {
        title: mean_result(runs, "bytes_per_step") / 4 / mean_result(runs, "step_seconds") / 1e6
        for title, runs in groups.items()
    }
    carried = probed.elements_per_second
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
            *gradients_in_words(groups[PLAIN.title][0]),
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
"""% of a normal distribution beyond one and two standard deviations."""


def gradients_in_words(run: Run) -> list[str]:
    if not run.counted:
        return []
    last = run.counted[-1]
    whole = overall(last.histograms["gradient"].values())
    one, two = (100 * whole.share_beyond(k) for k in (1, 2))
    weights = [overall(c.histograms["weight"].values()) for c in (run.counted[0], last)]
    narrow = "closer than" if one < NORMAL_BEYOND[0] else "no closer than"
    return [
        f"After {last.step} steps {one:.1f} % of all gradients lie beyond ±1 σ and {two:.1f} % "
        f"beyond ±2 σ, {narrow} a normal distribution's {NORMAL_BEYOND[0]} and "
        f"{NORMAL_BEYOND[1]} %: a threshold of one or two deviations leaves so few to send. The "
        f"deviation of all weights went from {weights[0].deviation:.4f} to "
        f"{weights[1].deviation:.4f}."
    ]


def trends(groups: Groups) -> Section:
    figures = []
    for k, setting in SIGMA.items():
        if setting.title in groups:
            rows = layer_rows({setting.title: groups[setting.title]})
            words = fall_in_words(rows)
            figures.append(trend_figure(rows, f"{k} σ", f"sigma-{k}", words))
    return Section(title="3. Thresholds over the steps", figures=figures)


def fall_in_words(rows: Sequence[Row]) -> str:
    """How the threshold of the largest layer moved: means of the first and last tenth."""
    values = [row["threshold"] for row in rows if row["layer"] == LARGEST_LAYER]
    tenth = max(1, len(values) // 10)
    first, last = mean_of(values[:tenth]), mean_of(values[-tenth:])
    if first is None or last is None:
        return ""
    return (
        f"The threshold of {LARGEST_LAYER} went from {first:.2g}, on average over the first tenth "
        f"of the steps, to {last:.2g} over the last."
    )


def tests(groups: Groups) -> list[Row]:
    return [
        {"run": title, "accuracy": run.result["metric"]}
        for title, runs in groups.items()
        for run in runs
        if run.result.get("metric") is not None
    ]


def accuracies(groups: Groups, rows: Sequence[Row]) -> Section:
    titles = have(groups, [PLAIN, *SIGMA.values(), *DROPPING.values()])
    return Section(
        title="4. Accuracy: dropping and accumulating",
        paragraphs=[
            "What is pruned is dropped, or kept and added to the next gradient. All values travel "
            "exactly, so that the threshold alone differs."
        ],
        figures=[
            accuracy_figure(rows, titles, "rule-accuracy"),
            test_figure(tests(groups), titles, "rule-test"),
        ],
        tables={"Rules": comparison(groups, titles)},
    )


def adjusted(groups: Groups, rows: Sequence[Row]) -> Section:
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
            *scale_figures(layers, rows, titles, LARGEST_LAYER),
            accuracy_figure(rows, beside, "adjusted-accuracy"),
            test_figure(tests(groups), beside, "adjusted-test"),
        ],
        tables={
            "Scales": comparison(groups, titles),
            "Beside other rules": comparison(groups, beside),
        },
    )


def collapse_in_words(groups: Groups) -> list[str]:
    """What scale 1 did, told from its records."""
    runs = groups.get(UNSENT_MEAN[1].title)
    if not runs:
        return []
    told = [
        (line["step"], line["thresholds"].get(LARGEST_LAYER), line["density"])
        for line in runs[0].steps
        if line.get("thresholds")
    ]
    first, last = told[0], told[-1]
    small = next((step for step, t, _ in told if first[1] and (t or 0) < 1e-3 * first[1]), None)
    fell = (
        f"was below a thousandth of its first value at step {small}"
        if small is not None
        else f"ended at {last[1]:.3g} after {first[1]:.3g}"
    )
    return [
        f"Scale 1, the rule as first proposed, collapses: near zero what is not sent is spread "
        f"evenly between 0 and the threshold, so that its mean, the next threshold, is half of it, "
        f"and so on. The threshold of {LARGEST_LAYER} {fell}, and {100 * last[2]:.0f} % of all "
        "elements were sent in the last step; the rest are exact zeros."
    ]


def comparison(groups: Groups, titles: Sequence[str]) -> Table:
    return summary_table({title: groups[title] for title in titles})


def write_grids(run: Run, out: Path) -> None:
    """Histograms of every layer and sampled step, a file a kind."""
    for kind, specification in grids(run.counted).items():
        name = f"distribution-{Path(run.path).parent.name.partition('-seed-')[0]}-{kind}"
        for ending in ("png", "svg"):
            write_chart(specification, out / f"{name}.{ending}")
