"""`partvisor debug`: what the hypervisor itself says, whoever else is stopped or dead; and `partvisor reboot`."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from runtime.commands.machines import _client, _machine_option
from runtime.commands.shared_options import json_option
from runtime.exits import CommandError, ExitCode
from runtime.reports import print_json, print_table

if TYPE_CHECKING:
    from runtime.hypervisor.recorder import Event

_EVENTS_MAX: Final = 1_000
_REBOOT_S_MAX: Final = 60.0
_POLL_S: Final = 0.02


@click.command()
@click.argument("machine", required=False)
@click.option(
    "--events",
    "events",
    type=click.IntRange(0, _EVENTS_MAX),
    default=20,
    show_default=True,
    help="How many of the last.",
)
@click.option(
    "--post-mortem",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Read what `run --post-mortem` left behind.",
)
@json_option
def debug(machine: str | None, events: int, post_mortem: Path | None, as_json: bool) -> int:
    """Show the hypervisor's own tables: partitions, ports, run queue, the last events.

    It answers by itself: root and platform may be stopped or dead. Where it does not answer any more, its flight
    recorder still tells of partitions and events.

    \b
    Example:
      partvisor debug
      partvisor debug quickstart --events 1000 --json
      partvisor debug --post-mortem crash.bin
    """
    from runtime.machine.debug_client import (
        DebugClient,
        HypervisorSilent,
        read_recording,
        recorded_events,
        recorded_partitions,
    )

    if post_mortem is not None:
        if machine is not None:
            raise click.UsageError("a post-mortem file is of no machine that runs")
        data = read_recording(post_mortem)
        report: dict[str, Any] = {"source": str(post_mortem), "partitions": recorded_partitions(data)}
    else:
        from runtime.machine.rundir import resolve

        folder = resolve(machine)
        data = read_recording(folder.recorder_path)
        try:
            with DebugClient(folder) as client:
                report = {
                    "source": "hypervisor",
                    "partitions": list(client.rows("partitions", "id")),
                    "ports": list(client.rows("ports", "key")),
                    "queue": list(client.rows("queue", "id")),
                }
        except HypervisorSilent as silent:
            report = {
                "source": "flight recorder",
                "silent": str(silent),
                "partitions": recorded_partitions(data),
            }
    log = recorded_events(data, events) if events else []
    if as_json:
        print_json(report | {"events": [event.row() for event in log]})
    else:
        _print(report, log)
    return ExitCode.DONE


def _print(report: dict[str, Any], log: "list[Event]") -> None:
    if "silent" in report:
        print(f"the hypervisor is silent: {report['silent']}; this is from its flight recorder")
    for table in ("partitions", "ports", "queue"):
        if table in report:
            print(f"\n{table}:")
            rows = [{key: value for key, value in row.items() if key != "key"} for row in report[table]]
            print_table(rows, f"no {table}" if table != "queue" else "nobody waits")
    print(f"\nlast {len(log)} events:")
    newest_ns = log[-1].when_ns if log else 0
    for event in log:
        ago_ms = (newest_ns - event.when_ns) / 1e6
        line = f"{event.number:>8}  -{ago_ms:<10.3f}  partition {event.partition:<4}  {event.what:<24}"
        line += f"  {event.status:<22}" if event.what.isupper() else f"  {event.detail:<22}"
        print(f"{line}  {event.took_ns / 1000:>8.1f} us  {' '.join(event.effects)}".rstrip())


@click.command()
@_machine_option
@json_option
def reboot(machine: str | None, as_json: bool) -> int:
    """Restart the root and every partition; the hypervisor and the machine's process stay.

    Partitions are asked to end, the root flushes its devices, and a new root begins as the first one did. Nothing of
    guests survives but what is on their disks.

    \b
    Example:
      partvisor reboot
    """
    with _client(machine) as client:
        last = client.last_sequence()
        client.request("reboot")
        deadline = time.monotonic() + _REBOOT_S_MAX
        while time.monotonic() < deadline:
            time.sleep(_POLL_S)
            for event in client.past_events(last):
                last = event.sequence
                if event.kind == "machine.ending":
                    raise CommandError(f"the machine goes down: {event.fields['reason']}")
                if event.kind == "machine.rebooted":
                    took_ms = event.fields["took_ms"]
                    print_json({"took_ms": took_ms}) if as_json else print(
                        f"every partition is back, after {took_ms} ms"
                    )
                    return ExitCode.DONE
    raise CommandError(f"no end of the reboot within {_REBOOT_S_MAX:g} s; see: partvisor events --no-follow")
