"""`partvisor sched`: who gets how much of the processors, and `partvisor sched set` to change it."""

import sys
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from runtime.abi import CPU_WEIGHT_MAX
from runtime.commands.machines import _client, _machine_option
from runtime.commands.shared_options import json_option
from runtime.config.shares import CpuShare, share_text
from runtime.exits import ExitCode
from runtime.measure.delivered_shares import delivered_between
from runtime.reports import print_json, print_table

if TYPE_CHECKING:
    from runtime.machine.management_client import ManagementClient


def _share(context: click.Context, parameter: click.Parameter, value: str | None) -> CpuShare | None:
    try:
        return None if value is None else CpuShare.parse(value)
    except ValueError as error:
        raise click.BadParameter(f"{value!r}; allowed: {error}") from error


@click.group(invoke_without_command=True)
@click.option("--once", is_flag=True, help="Measure once and end; the default where stdout is no terminal.")
@click.option(
    "--interval",
    type=click.FloatRange(0.1, 3600),
    default=1.0,
    show_default=True,
    help="Seconds over which shares are measured.",
)
@_machine_option
@json_option
@click.pass_context
def sched(context: click.Context, once: bool, interval: float, machine: str | None, as_json: bool) -> int:
    """Show what each partition should get of the processors, and what it gets.

    "due" is what weights, reserves and caps give it of the CPU time that was delivered, "used" what it had; both in
    percent of one processor. "delivered" is its part of all that partitions had.

    \b
    Example:
      partvisor sched
      partvisor sched --once --json
      partvisor sched set writer --weight 400 --cap 20%
    """
    if context.invoked_subcommand is not None:
        return ExitCode.DONE
    live = sys.stdout.isatty() and not once and not as_json
    with _client(machine) as client:
        if live:
            _watch(client, interval)
        before = client.request("sched")
        while True:
            time.sleep(interval)
            after = client.request("sched")
            result = delivered_between(before, after)
            if as_json:
                print_json(result)
            else:
                print(_headline(result))
                print_table(_rows(result), "no partition runs")
            if once or not as_json:
                return ExitCode.DONE
            before = after


@sched.command("set")
@click.argument("name")
@click.option(
    "--weight", type=click.IntRange(1, CPU_WEIGHT_MAX), help="Relative to its siblings; 100 is usual."
)
@click.option("--reserve", callback=_share, metavar="PERCENT", help="Guaranteed to each VP, such as 10%.")
@click.option(
    "--cap", callback=_share, metavar="PERCENT", help="The most that each VP gets, such as 20%; 100%: no cap."
)
@_machine_option
@json_option
def set_(
    name: str,
    weight: int | None,
    reserve: CpuShare | None,
    cap: CpuShare | None,
    machine: str | None,
    as_json: bool,
) -> int:
    """Change a partition's weight, reserve or cap while it runs.

    \b
    Example:
      partvisor sched set writer --weight 400
      partvisor sched set reader --cap 20%
    """
    given = {"weight": weight, "reserve": reserve, "cap": cap}
    shares = {key: int(value) for key, value in given.items() if value is not None}
    if not shares:
        raise click.UsageError("nothing to change: give --weight, --reserve or --cap")
    with _client(machine) as client:
        client.request("schedule", name=name, shares=shares)
    if as_json:
        print_json({"name": name, **shares})
    else:
        texts = [f"{key} {value if key == 'weight' else share_text(value)}" for key, value in shares.items()]
        print(f"partition {name} now has {', '.join(texts)}")
    return ExitCode.DONE


def _headline(result: Mapping[str, Any]) -> str:
    how = f"by {result['mechanism']}" if result["mechanism"] else "by the host alone: no partition has shares"
    note = f" ({result['note']})" if result["note"] else ""
    cost = f"the broker used {result['broker_percent']:g}% of a CPU"
    return f"scheduled {how}{note}, over {result['seconds']:.1f} s; {cost}"


def _rows(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    def percent(value: float | None) -> str | None:
        return None if value is None else f"{value:.1f}%"

    return [
        {
            "name": row["name"],
            "weight": row["weight"],
            "reserve": share_text(row["reserve"]),
            "cap": share_text(row["cap"]),
            "vps": row["vps"],
            "due": percent(row["due_percent"]),
            "used": percent(row["used_percent"]),
            "delivered": percent(row["delivered_percent"]),
        }
        for row in result["partitions"]
    ]


def _watch(client: "ManagementClient", interval: float) -> None:
    """Refresh one table until Ctrl-C or the machine's end."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Group
    from rich.live import Live
    from rich.table import Table
    from rich.text import Text

    before = client.request("sched")
    with Live(Text("measuring"), auto_refresh=False) as live:
        while True:
            time.sleep(interval)
            after = client.request("sched")
            result = delivered_between(before, after)
            before = after
            rows = _rows(result)
            table = Table(*(rows[0] if rows else ("no partition runs",)), box=SIMPLE_HEAD, pad_edge=False)
            for row in rows:
                table.add_row(*(Text("-" if cell is None else str(cell)) for cell in row.values()))
            live.update(Group(Text(_headline(result)), table), refresh=True)
