"""`partvisor trace`: where the time of the requests went that `partvisor run --trace FILE` has kept."""

from pathlib import Path
from typing import Any

import click

from runtime.commands.shared_options import json_option, perfetto_option, request_option
from runtime.reports import print_json, print_record, print_table


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--svg", type=click.Path(path_type=Path), help="Draw the split of every channel into this file."
)
@perfetto_option
@request_option
@json_option
def trace(file: Path, svg: Path | None, perfetto: Path | None, request: str, as_json: bool) -> int:
    """Show how the time of requests is split between the hops that they took.

    FILE is what `partvisor run CONFIG --trace FILE` left when its machine ended.

    \b
    Example:
      partvisor trace hops.trace --svg hops.svg
      partvisor trace hops.trace --perfetto slowest.json --request slowest
    """
    from runtime.measure.trace_flame import write_svg
    from runtime.measure.trace_perfetto import write_perfetto
    from runtime.measure.trace_split import find_requests, percentile, split_of, titles
    from runtime.trace_file import Capture

    found = find_requests(Capture.read(file))
    splits: dict[str, list[dict[str, Any]]] = {}
    totals: dict[str, str] = {}
    for key, name in titles(found.requests, found.names).items():
        requests = [one for one in found.requests if (one.channel, one.generation) == key]
        splits[name] = split_of(requests)
        times = sorted(one.total_ns for one in requests)
        totals[name] = (
            f"{len(times)} requests, p50 {percentile(times, 50):.0f} ns, p99 {percentile(times, 99):.0f} ns"
        )
    if svg is not None:
        write_svg(svg, splits, totals)
    if perfetto is not None:
        write_perfetto(perfetto, found.requests, found.names, request)
    about = {
        "requests": len(found.requests),
        "incomplete": found.incomplete,
        "disordered": found.disordered,
        "lost_stamps": found.lost_stamps,
    }
    if as_json:
        print_json({"splits": splits, "totals": totals, **about})
        return 0
    for name, rows in splits.items():
        print(f"{name}: {totals[name]}")
        print_table([row | {"share": f"{row['share']:.1%}"} for row in rows], "nothing was traced")
        print()
    print_record(about)
    return 0
