"""gradsieve bench: what this machine measures."""

from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Annotated, Any

import typer

from gradsieve.lab.bench.frontier.cli import bench_frontier_command
from gradsieve.lab.bench.rate.cli import bench_rate_command
from gradsieve.lab.bench.recorder import bench_recorder_command
from gradsieve.lab.console import (
    console,
    fail,
    measuring,
    require_data,
    require_outputs,
    working,
    write_json,
)
from gradsieve.lab.options import Json, Ranks, Seed, links
from gradsieve.runtime.threads import usable_cores

app = typer.Typer(help="Measure on this machine.", no_args_is_help=True)
app.command("rate")(bench_rate_command)
app.command("frontier")(bench_frontier_command)
app.command("recorder")(bench_recorder_command)


@app.command("select")
def bench_select_command(
    numel: Annotated[int, typer.Option(min=4096, help="Elements of the arrays.")] = 2**24,
    repeats: Annotated[int, typer.Option(min=3, help="Timings a median is taken of.")] = 21,
    json_file: Json = None,
) -> None:
    """Elements a second of `select` beside `tensor.add_` on the same arrays in the same run."""
    from gradsieve.lab.bench.select import bench_first_call, bench_select
    from gradsieve.lab.tables import table_of

    require_outputs(json_file)
    title = f"select, {numel:,} float32, {usable_cores()} cores"
    table = table_of(("threads", "density", "select, G/s", "add_, G/s", "ratio"), title=title)
    rows: list[dict[str, Any]] = []
    with working("measuring ..."):
        for row in bench_select(numel, repeats):
            rows.append(asdict(row))
            table.add_row(
                str(row.threads),
                f"{row.density:.1%}",
                f"{row.select_rate / 1e9:.2f}",
                f"{row.add_rate / 1e9:.2f}",
                f"{row.ratio:.2f}",
            )
        empty, cached = bench_first_call()
    console.print(table)
    console.print(
        f"First call in a process: {empty:.2f} s with an empty compiler cache, "
        f"{cached:.2f} s from the cache on disk."
    )
    startup = {"first_call_seconds": empty, "first_call_cached_seconds": cached}
    write_json(json_file, {"rows": rows, **startup})


@app.command("codec")
def bench_codec_command(
    workload: Annotated[
        list[str] | None,
        typer.Option(
            help="Record gradients of these; repeat the option.",
            show_default="mnist_cnn, mlp and gpt",
        ),
    ] = None,
    repeats: Annotated[int, typer.Option(min=3, help="Timings a median is taken of.")] = 7,
    plot: Annotated[
        Path | None, typer.Option(help="Draw rate against error to this .png or .svg.")
    ] = None,
    json_file: Json = None,
) -> None:
    """Bits, error and speed of frames, and what other codes make of the same gradients."""
    require_outputs(json_file, plot=plot)
    from gradsieve.lab.bench.bound import rate_distortion
    from gradsieve.lab.bench.codec import DENSITIES, CodecRow, Curve, bench_codec, rates_of_denser
    from gradsieve.lab.bench.codec_report import bits_table, draw, peers_table, speed_table
    from gradsieve.lab.bench.gradients import sources
    from gradsieve.lab.bench.peers import PeerRow, peer_rows

    names = workload or ["mnist_cnn", "mlp", "gpt"]
    rows: list[CodecRow] = []
    peers: list[PeerRow] = []
    curves: dict[str, Curve] = {}
    bounds: dict[str, Curve] = {}
    try:
        require_data(*names)
        for source, gradients in sources(names):
            with working(f"measuring {source} ..."):
                measured = list(bench_codec(source, gradients, repeats))
                points = [(row.bits_per_parameter, row.relative_error) for row in measured]
                rows += measured
                curves[source] = points + rates_of_denser(gradients)
                if source != "uniform":
                    peers.extend(peer_rows(source, gradients, DENSITIES))
                bounds[source] = rate_distortion(list(gradients.values()))
            console.print(f"{source}: done", style="dim")
    except ValueError as error:
        fail(str(error))
    console.print(bits_table(rows))
    console.print(speed_table(rows))
    console.print(peers_table(peers, curves))
    if plot is not None:
        draw(curves, peers, bounds, plot)
    content = {
        "rows": [asdict(row) for row in rows],
        "peers": [asdict(row) for row in peers],
        "levels": curves,
        "bounds": bounds,
        "cores": usable_cores(),
    }
    write_json(json_file, content)


@app.command("step")
def bench_step_command(
    workload: Annotated[
        list[str] | None,
        typer.Option(
            help="mnist_cnn, mlp, gpt or gpt-small, perhaps with :optimizer=muon; repeat it.",
            show_default="mnist_cnn",
        ),
    ] = None,
    link: Annotated[list[str] | None, links("1gbit")] = None,
    method: Annotated[
        list[str] | None,
        typer.Option(
            help="ddp, fp16, powersgd:4, lock-step, alone, sieve, sieve:density=0.01, "
            "local:every=10,sigma=2; on nodes of several ranks hsdp, fsdp-sieve:sigma=2, "
            "fsdp-alone; repeat it.",
            show_default="ddp, fp16, powersgd:1 and sieve",
        ),
    ] = None,
    ranks: Ranks = 2,
    ranks_per_node: Annotated[
        int, typer.Option(min=1, help="Ranks that share one end of the link.")
    ] = 1,
    steps: Annotated[
        int, typer.Option(min=20, help="Training steps of each run; the first 10 are not timed.")
    ] = 60,
    rounds: Annotated[int, typer.Option(min=1, help="How often every method runs, in turn.")] = 3,
    seed: Seed = 0,
    out: Annotated[Path, typer.Option(help="Directory for the runs' records and logs.")] = Path(
        "build/bench-step"
    ),
    json_file: Json = None,
) -> None:
    """Seconds of a step and bytes of it: trains over each link, a node on cores of its own."""
    from gradsieve.lab.bench.step import StepRow, bench_step, nodes_of, step_table
    from gradsieve.lab.link import require_link
    from gradsieve.lab.methods.table import read_distributed

    workloads = workload or ["mnist_cnn"]
    rates = link or ["1gbit"]
    methods = method or ["ddp", "fp16", "powersgd:1", "sieve"]
    require_outputs(json_file, out=out)
    rows: list[StepRow] = []
    with measuring():
        for name in methods:
            read_distributed(name)
        require_data(*workloads)
        for text in rates:
            require_link(nodes_of(ranks, ranks_per_node), text)
        for name, text in product(workloads, rates):
            with working(f"{name}, {text}: starting ranks ...") as tell:
                measured = bench_step(
                    name,
                    text,
                    methods,
                    ranks=ranks,
                    ranks_per_node=ranks_per_node,
                    steps=steps,
                    rounds=rounds,
                    seed=seed,
                    out=out,
                    begin=lambda config: tell(
                        f"{config.workload}, {config.link}: {config.method} ..."
                    ),
                )
            console.print(step_table(measured))
            rows += measured
    write_json(json_file, [asdict(row) for row in rows])


@app.command("exchange")
def bench_exchange_command(
    exchange: Annotated[
        list[str] | None,
        typer.Option(
            help="A topology of frames that needs no nodes, such as gather; repeat it.",
            show_default="all",
        ),
    ] = None,
    ranks: Annotated[
        list[int] | None,
        typer.Option(
            min=2, max=16, help="Processes that exchange; repeat it.", show_default="2, 4 and 8"
        ),
    ] = None,
    link: Annotated[list[str] | None, links("100mbit")] = None,
    numel: Annotated[int, typer.Option(min=2**20, help="Elements of the bucket.")] = 20_000_000,
    density: Annotated[
        float, typer.Option(min=1e-5, max=0.9, help="The share of elements that a rank sends.")
    ] = 0.01,
    out: Annotated[Path, typer.Option(help="Directory for logs.")] = Path("build/bench-exchange"),
    json_file: Json = None,
) -> None:
    """Seconds and bytes of one bucket's exchange, on more and more ranks."""
    from gradsieve.lab.bench.exchange import ExchangeRow, bench_exchange, exchange_table
    from gradsieve.lab.link import require_link
    from gradsieve.topology import FRAMES

    require_outputs(json_file, out=out)
    known = [topology.name for topology in FRAMES if not topology.of_nodes]
    for word in exchange or []:
        if word not in known:
            fail(f"{word!r} is no exchange of one node a rank; write {' or '.join(known)}")
    topologies = [name for name in known if not exchange or name in exchange]
    counts = ranks or [2, 4, 8]
    rates = link or ["100mbit"]
    rows: list[ExchangeRow] = []
    with measuring():
        for text in rates:
            require_link(max(counts), text)
        for text in rates:
            with working("starting ...") as tell:
                measured = bench_exchange(
                    topologies,
                    counts,
                    text,
                    numel=numel,
                    density=density,
                    out=out,
                    begin=tell,
                )
            console.print(exchange_table(measured))
            rows += measured
    write_json(json_file, [asdict(row) for row in rows])
