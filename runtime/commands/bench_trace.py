"""`partvisor bench trace`."""

from pathlib import Path

import click

from runtime.commands.cpu_pair import cpu_pair
from runtime.commands.shared_options import json_option, perfetto_option, request_option


@click.command("trace")
@click.option(
    "--cpus",
    metavar="A,B",
    callback=cpu_pair,
    help="The CPUs of guest and root; default: the first two allowed.",
)
@click.option("--svg", type=click.Path(path_type=Path), help="Draw the splits into this file.")
@perfetto_option
@request_option
@click.option("--quick", is_flag=True, help="A tenth of the samples: for a look, not for a comparison.")
@json_option
def trace(
    cpus: tuple[int, int] | None,
    svg: Path | None,
    perfetto: Path | None,
    request: str,
    quick: bool,
    as_json: bool,
) -> int:
    """Where the time of a request goes, hop by hop, and what a stamp costs.

    \b
    Example:
      partvisor bench trace --quick
      partvisor bench trace --svg hops.svg --perfetto slowest.json --request slowest
    """
    from runtime.measure.bench_trace import run

    return run(quick=quick, as_json=as_json, cpus=cpus, svg=svg, perfetto=perfetto, request=request)
