"""`partvisor list`, `show`, `events`, `stop`, `kill`: talk to machines that run."""

import datetime
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from runtime.commands.shared_options import json_option
from runtime.exits import ExitCode
from runtime.reports import cell, print_json, print_record, print_table
from runtime.reserved_names import HYPERVISOR

if TYPE_CHECKING:
    from runtime.machine.events import Event
    from runtime.machine.management_client import ManagementClient

_PACKED_CHARACTERS_MIN: Final = 256  # a value of one word this long is for programs: --json has it

_Command = TypeVar("_Command", bound=Callable[..., Any])


def _machine_option(command: _Command) -> _Command:
    return click.option(
        "-m", "--machine", metavar="NAME", help="Which machine; may be left out when only one runs."
    )(command)


@contextmanager
def _client(machine: str | None) -> Iterator["ManagementClient"]:
    from runtime.machine.management_client import ManagementClient
    from runtime.machine.rundir import resolve

    with ManagementClient(resolve(machine)) as client:
        yield client


@click.command("list")
@_machine_option
@json_option
def list_(machine: str | None, as_json: bool) -> int:
    """List the partitions that run.

    \b
    Example:
      partvisor list
      partvisor list --machine quickstart --json
    """
    from runtime.machine.management_client import ManagementClient
    from runtime.machine.rundir import find_machines, resolve

    machines = []
    for folder in (machine is None and find_machines()) or [resolve(machine)]:
        with ManagementClient(folder) as client:
            partitions = client.request("list")["partitions"]
        machines.append({"name": folder.name, "pid": folder.pid, "partitions": partitions})
    if as_json:
        print_json({"machines": machines})
        return ExitCode.DONE
    rows = [
        {"machine": entry["name"], **partition} for entry in machines for partition in entry["partitions"]
    ]
    print_table(rows, "no partitions")
    return ExitCode.DONE


@click.command()
@click.argument("name")
@_machine_option
@json_option
def show(name: str, machine: str | None, as_json: bool) -> int:
    """Show one partition: its state, memory, processors, devices.

    `partvisor show hypervisor` shows the hypervisor itself: its size, its memory, the calls that it made and served.

    \b
    Example:
      partvisor show writer
      partvisor show hypervisor
    """
    with _client(machine) as client:
        record = client.request("hypervisor") if name == HYPERVISOR else client.request("show", name=name)
    print_json(record) if as_json else print_record(record)
    return ExitCode.DONE


@click.command()
@click.argument("name", default="")
@_machine_option
@json_option
def interrupts(name: str, machine: str | None, as_json: bool) -> int:
    """Show what became of every interrupt, port by port; of partition NAME, or of all.

    sent = merged + suppressed + delivered + waiting. What goes by the direct route does not pass the hypervisor: there
    the rings' own counters tell.

    \b
    Example:
      partvisor interrupts writer
      partvisor interrupts --json
    """
    with _client(machine) as client:
        rows = client.request("interrupts", name=name)["ports"]
    print_json({"ports": rows}) if as_json else print_table(rows, "no ports")
    return ExitCode.DONE


@click.command()
@click.option("--follow/--no-follow", default=True, help="Go on until the machine ends; the default.")
@_machine_option
@json_option
def events(follow: bool, machine: str | None, as_json: bool) -> int:
    """Print what happens on a machine.

    First what is kept of the past, then each new event, a line each, until the machine ends.

    \b
    Example:
      partvisor events --no-follow
      partvisor events --json | grep partition.exited
    """
    last = 0
    with _client(machine) as client:
        for event in client.events() if follow else client.past_events():
            if event.sequence > last + 1 and not as_json:
                print(f"({event.sequence - last - 1} events are not kept any more)")
            last = event.sequence
            print_json(event_fields(event)) if as_json else print(event_line(event), flush=True)
    return ExitCode.DONE


@click.command()
@_machine_option
@json_option
def stop(machine: str | None, as_json: bool) -> int:
    """Stop a machine.

    Returns when nothing of it is left.

    \b
    Example:
      partvisor stop
    """
    from runtime.machine.rundir import resolve

    name = resolve(machine).name
    with _client(name) as client:
        client.stop()
    print_json({"stopped": name}) if as_json else print(f"machine {name} has stopped")
    return ExitCode.DONE


@click.command()
@click.argument("name")
@_machine_option
@json_option
def kill(name: str, machine: str | None, as_json: bool) -> int:
    """Kill one partition.

    At once, as pulling its plug would; the others run on.

    \b
    Example:
      partvisor kill writer
    """
    with _client(machine) as client:
        client.request("kill", name=name)
    print_json({"killed": name}) if as_json else print(f"partition {name} is killed")
    return ExitCode.DONE


def event_fields(event: "Event") -> dict[str, Any]:
    """For JSON."""
    return {
        "sequence": event.sequence,
        "monotonic_ns": event.monotonic_ns,
        "wall_ns": event.wall_ns,
        "kind": event.kind,
        "partition": event.partition,
        "fields": event.fields,
    }


def event_line(event: "Event") -> str:
    """12:30:01.250  partition.started  writer  pid=4711"""
    moment = datetime.datetime.fromtimestamp(event.wall_ns / 1e9)  # local time, as the terminal's clock shows
    time_text = moment.isoformat(sep=" ", timespec="milliseconds")[11:]
    text = f"{time_text}  {cell('', event.kind):<22}  {event.partition or '-':<10}"
    for key, value in event.fields.items():
        packed = isinstance(value, str) and len(value) > _PACKED_CHARACTERS_MIN and " " not in value
        shown = f"({len(value)} characters)" if packed else cell(key, value)
        text += f"  {key}={shown}"
    return text.rstrip()
