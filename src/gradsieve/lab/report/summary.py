"""The table and the sentences at the top of a report."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from gradsieve.lab.report.series import mean_of
from gradsieve.lab.report.source import Run, Source

PLAIN = "ddp"
FLOAT32_BITS = 32
WORTH_TELLING = 1.5


def summary_table(groups: Mapping[str, Sequence[Run]]) -> tuple[list[str], list[list[str]]]:
    """Return headings and cells, without the columns that no run fills."""
    columns = [(heading, [cell(runs) for runs in groups.values()]) for heading, cell in CELLS]
    several = any(len(runs) > 1 for runs in groups.values())
    kept = [
        (heading, cells)
        for heading, cells in columns
        if any(cells) and (several or heading != "seeds")
    ]
    headings = ["run", *(heading for heading, _ in kept)]
    return headings, [
        [title, *(cells[place] or "–" for _, cells in kept)] for place, title in enumerate(groups)
    ]


def summary_rows(source: Source) -> list[dict[str, Any]]:
    """Return the title, place and result of every run, and means over its steps."""
    return [
        {
            "run": run.title,
            "name": run.name,
            "steps": len(run.steps),
            **run.result,
            "bits_per_parameter": bits(run),
            "density": None if density(run) is None else (density(run) or 0.0) / 100,
            "exposed_seconds": None if exposed(run) is None else (exposed(run) or 0.0) / 1000,
        }
        for run in source.runs
    ]


def mean_in_words(runs: Sequence[Run], value: Callable[[Run], float | None], form: str) -> str:
    """Return the mean over seeds; empty where none has a value."""
    mean = mean_over(runs, value)
    return "" if mean is None else f"{mean:{form}}"


def spread(runs: Sequence[Run], value: Callable[[Run], float | None], form: str) -> str:
    """Return the mean over seeds, with the extremes of several; empty where none has a value."""
    known = [number for number in map(value, runs) if number is not None]
    mean = mean_in_words(runs, value, form)
    return mean if len(known) < 2 else f"{mean} ({min(known):{form}} to {max(known):{form}})"


def result(field: str, factor: float = 1.0) -> Callable[[Run], float | None]:
    def read(run: Run) -> float | None:
        value = run.result.get(field)
        return None if value is None else factor * float(value)

    return read


def bits(run: Run) -> float | None:
    found = run.result.get("bits_per_parameter")
    if found is not None:
        return float(found)
    return mean_of(line.get("bits_per_parameter") for line in run.steps)


def density(run: Run) -> float | None:
    found = mean_of(line.get("density") for line in run.steps)
    return None if found is None else 100 * found


def exposed(run: Run) -> float | None:
    found = mean_of(line.get("exposed_seconds") for line in run.steps)
    return None if found is None else 1000 * found


def last_of(name: str) -> Callable[[Run], float | None]:
    """Return what takes the mean of a metric over the last tenth of a run."""

    def read(run: Run) -> float | None:
        if not run.trains_together:
            return None
        tail = run.steps[-max(1, len(run.steps) // 10) :]
        return mean_of(line.get(name) for line in tail)

    return read


CELLS: Sequence[tuple[str, Callable[[Sequence[Run]], str]]] = (
    ("seeds", lambda runs: str(len(runs))),
    ("steps", lambda runs: f"{len(runs[0].steps):,}"),
    ("step, ms", lambda runs: mean_in_words(runs, result("step_seconds", 1000), ".1f")),
    ("× the limit", lambda runs: mean_in_words(runs, result("ratio"), ".2f")),
    ("MB a step", lambda runs: mean_in_words(runs, result("bytes_per_step", 1e-6), ".3f")),
    ("bits a parameter", lambda runs: mean_in_words(runs, bits, "#.3g")),
    ("sent, %", lambda runs: mean_in_words(runs, density, "#.3g")),
    ("exposed, ms", lambda runs: mean_in_words(runs, exposed, ".1f")),
    ("last loss", lambda runs: mean_in_words(runs, last_of("loss"), ".3f")),
    ("test", lambda runs: spread(runs, result("metric"), ".4f")),
)


def sentences(groups: Mapping[str, Sequence[Run]]) -> list[str]:
    """Return sentences about what was run, what it sent and what it learned."""
    if not groups:
        return []
    told = [setting_in_words(groups), sending_in_words(groups), learning_in_words(groups)]
    return [sentence for sentence in told if sentence]


def setting_in_words(groups: Mapping[str, Sequence[Run]]) -> str:
    runs = [run for group in groups.values() for run in group]
    first, lengths = runs[0], {len(run.steps) for run in runs}
    count = "One run" if len(runs) == 1 else f"{len(runs)} runs of {len(groups)} settings"
    steps = "of" if len(lengths) == 1 else "of up to"
    parts = [f"{count} {steps} {max(lengths):,} steps"]
    ranks = first.config.get("ranks") or first.heading.get("ranks")
    if ranks:
        parts.append(f"on {ranks} {'rank' if ranks == 1 else 'ranks'}")
    if first.config.get("workload"):
        parts.append(f"of {first.config['workload']}")
    if first.parameters:
        parts.append(f"with {sum(first.parameters.values()):,} parameters")
    links = {run.result.get("link", "") for run in runs}
    if len(links) == 1 and (link := links.pop()):
        parts.append(f"over {link.removeprefix(f'{ranks} ranks, ')}")
    cores = first.heading.get("cores")
    return " ".join(parts) + (f"; a machine with {cores} cores." if cores else ".")


def plain_of(groups: Mapping[str, Sequence[Run]]) -> Sequence[Run] | None:
    """Return the runs of plain DDP that have ended."""
    ended = ([run for run in runs if run.result] for runs in groups.values())
    return next((runs for runs in ended if runs and runs[0].config.get("method") == PLAIN), None)


def mean_over(runs: Sequence[Run], value: Callable[[Run], float | None]) -> float | None:
    return mean_of(map(value, runs))


def sieved(groups: Mapping[str, Sequence[Run]]) -> dict[str, Sequence[Run]]:
    """Return the runs that pruned in some step."""
    return {title: runs for title, runs in groups.items() if runs[0].pruned}


def sending_in_words(groups: Mapping[str, Sequence[Run]]) -> str:
    told = {title: mean_over(runs, bits) for title, runs in sieved(groups).items()}
    known = {title: number for title, number in told.items() if number}
    if not known:
        return ""
    least = min(known, key=lambda title: known[title])
    name = f"“{least}” sends least" if len(known) > 1 else f"“{least}” sends"
    sentence = f"{name}: {known[least]:.3g} bits a parameter and step"
    fewer = FLOAT32_BITS / known[least]
    if fewer > WORTH_TELLING:
        sentence += f", {fewer:,.0f} times fewer than float32"
    step, plain = mean_over(groups[least], result("ratio")), plain_of(groups)
    dense = None if plain is None else mean_over(plain, result("ratio"))
    if step is not None and dense is not None:
        return f"{sentence}; its step takes {step:.2f} times the limit, plain DDP's {dense:.2f}."
    waits = mean_over(groups[least], exposed)
    if waits is not None:
        return f"{sentence}; the exchange adds {waits:.1f} ms to a pruned step."
    return sentence + "."


def learning_in_words(groups: Mapping[str, Sequence[Run]]) -> str:
    tested = {title: mean_over(runs, result("metric")) for title, runs in sieved(groups).items()}
    pruned = {title: number for title, number in tested.items() if number is not None}
    plain = plain_of(groups)
    dense = None if plain is None else mean_over(plain, result("metric"))
    if plain is None or dense is None or not pruned:
        return loss_in_words(*next(iter(groups.items())))
    name = str(plain[0].result.get("metric_name", "metric"))
    order = sorted(pruned, key=lambda title: pruned[title], reverse="loss" not in name)
    best, worst = order[0], order[-1]
    told = {plain[0].title, best, worst}
    seeds = min(len(groups[title]) for title in told)
    sentence = f"{name[0].upper()}{name[1:]} is {dense:.4f} with plain DDP"
    if best == worst:
        sentence += f", {pruned[best]:.4f} with “{best}”"
    else:
        sentence += (
            f"; of the sieves “{best}” ends best at {pruned[best]:.4f}, “{worst}” worst at "
            f"{pruned[worst]:.4f}"
        )
    return sentence + (f" (means of {seeds} seeds or more)." if seeds > 1 else " (one seed).")


def loss_in_words(title: str, runs: Sequence[Run]) -> str:
    first, last = mean_of(line.get("loss") for line in runs[0].steps[:10]), last_of("loss")(runs[0])
    if first is None or last is None:
        return ""
    return (
        f"The loss of “{title}” went from {first:.3f} in the first ten steps to {last:.3f} in the "
        "last tenth."
    )


def stage_rows(groups: Mapping[str, Sequence[Run]]) -> list[dict[str, Any]]:
    """Return the milliseconds of a median step by stage.

    They are means over the seeds in whose runs the limit was measured."""
    rows = []
    for title, runs in groups.items():
        seeds = [stage_seconds(run) for run in runs if run.result.get("limit_seconds")]
        rows += [
            {
                "run": title,
                "stage": stage,
                "order": order,
                "milliseconds": 1000 * statistics.fmean(seed[stage] for seed in seeds),
            }
            for order, stage in enumerate(seeds[0] if seeds else ())
        ]
    return rows


def stage_seconds(run: Run) -> dict[str, float]:
    """Return the seconds of each stage: computation is the limit, the rest is what the method adds.

    An exchange runs beside the backward pass, so that only what it adds can be measured.
    """
    step, limit = run.result["step_seconds"], run.result["limit_seconds"]
    added = max(0.0, step - limit) if run.trains_together else 0.0
    records = [line for line in run.steps[len(run.steps) // 10 :] if line.get("thresholds")]
    ours = ("rotate_seconds", "select_seconds", "encode_seconds")
    select = 0.0
    if records:
        told = statistics.median(sum(line.get(stage, 0.0) for stage in ours) for line in records)
        select = min(added, told)
    return {
        "compute": step - added,
        "select and encode": select,
        "exchange and decode": added - select,
    }
