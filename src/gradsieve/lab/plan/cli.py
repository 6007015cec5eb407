"""gradsieve plan: what a step will take with each exchange."""

from collections.abc import Sequence
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from gradsieve.lab.console import (
    console,
    fail,
    require_data,
    require_outputs,
    working,
    write_json,
)
from gradsieve.lab.options import Json
from gradsieve.lab.plan.count import count_of
from gradsieve.lab.plan.rows import Comparison, PlanRow


def plan(
    workload: Annotated[
        list[str] | None,
        typer.Option(
            help="mnist_cnn, mlp, gpt or gpt-small; repeat it.",
            show_default="mnist_cnn, unless --parameters or --rows is given",
        ),
    ] = None,
    parameters: Annotated[
        float | None,
        typer.Option(parser=count_of, metavar="COUNT", help="A model of your own, as 350M."),
    ] = None,
    step_ms: Annotated[
        float | None,
        typer.Option(min=0.001, help="Milliseconds of your model's step without any exchange."),
    ] = None,
    link: Annotated[
        list[str] | None,
        typer.Option(
            help='As "1gbit" or "20mbit+40ms"; "none": loopback; repeat it.', show_default="1gbit"
        ),
    ] = None,
    ranks: Annotated[
        list[int] | None,
        typer.Option(min=2, help="Machines, with a rank each; repeat it.", show_default="2"),
    ] = None,
    bits: Annotated[
        float, typer.Option(min=0.001, help="What a frame takes, in bits an element.")
    ] = 0.25,
    rows: Annotated[
        list[Path] | None,
        typer.Option(help="Rows of `gradsieve bench step --json` to compare with; repeat it."),
    ] = None,
    out: Annotated[Path, typer.Option(help="Directory for what is measured.")] = Path("build/plan"),
    json_file: Json = None,
) -> None:
    """Predict the seconds of a step with each exchange, from what this machine measures.

    The quickest exchange need not be the best: the part of a gradient that is sent decides what
    is learned.
    """
    from gradsieve.lab.link import UNSHAPED, parse_link
    from gradsieve.lab.plan.bare_step import like_usual
    from gradsieve.lab.plan.machine import measure
    from gradsieve.lab.plan.rows import comparisons, plan_row, read_rows
    from gradsieve.lab.runs.launch import RunError

    require_outputs(json_file, out=out)
    if (parameters is None) != (step_ms is None):
        fail("give --parameters and --step-ms together, or neither")
    try:
        measured_rows = read_rows(rows or [])
    except (OSError, ValueError) as error:
        fail(f"cannot read the rows of `gradsieve bench step --json`: {error}")
    try:
        named = workload or ([] if parameters or rows else ["mnist_cnn"])
        needed = {*named, *(str(row["workload"]) for row in measured_rows)}
        require_data(*needed)
        links = link or ["1gbit"]
        for rate in links:
            if rate != UNSHAPED:
                parse_link(rate)
        with working("measuring this machine, a minute or more ..."):
            measured = measure(sorted(needed), out)
        bare_steps = {name: measured.bare_steps[name] for name in named}
        if parameters is not None and step_ms is not None:
            bare_steps[f"{parameters:,.0f} parameters"] = like_usual(parameters, step_ms / 1000)
        planned = [
            plan_row(name, bare, measured.machine, rate, count, bits)
            for (name, bare), rate, count in product(bare_steps.items(), links, ranks or [2])
        ]
        compared = list(comparisons(measured_rows, measured))
    except KeyError as error:
        fail(f"these are no rows of `gradsieve bench step`: they lack {error}")
    except (RunError, ValueError, OSError) as error:
        fail(str(error))
    for name in bare_steps:
        console.print(plan_table([row for row in planned if row.workload == name]))
    if compared:
        console.print(comparison_table(compared))
    content = {
        "machine": asdict(measured.machine),
        "rows": [asdict(row) for row in planned],
        "comparisons": [asdict(row) | {"error": row.error} for row in compared],
    }
    write_json(json_file, content)


def plan_table(rows: Sequence[PlanRow]) -> Table:
    """Return the table of one workload."""
    from gradsieve.lab.tables import table_of

    first = rows[0]
    names = list(first.seconds)
    table = table_of(
        ("link", "ranks", *names, "quickest"),
        title=f"{first.workload}: milliseconds of a step, {1000 * first.limit_seconds:,.0f} with "
        f"no exchange; frames of {first.bits:g} bits an element",
        words=("link", "quickest"),
    )
    for row in rows:
        cells = (f"{1000 * row.seconds[name]:,.0f}" for name in names)
        table.add_row(row.link, f"{row.ranks:,}", *cells, ", ".join(row.quickest))
    return table


def comparison_table(rows: Sequence[Comparison]) -> Table:
    from gradsieve.lab.tables import table_of

    table = table_of(
        ("workload", "link", "method", "measured", "predicted", "off by"),
        title="milliseconds of a step, predicted and measured",
        words=("workload", "link", "method"),
    )
    for row in rows:
        link = row.link.removeprefix(f"{row.ranks} ranks, ").replace(" each way (tbf)", "")
        table.add_row(
            row.workload,
            link.partition(", not shaped")[0].replace(" round trip", ""),
            row.method,
            f"{1000 * row.measured_seconds:,.0f}",
            f"{1000 * row.predicted_seconds:,.0f}",
            f"{row.error:+.0%}",
        )
    return table
