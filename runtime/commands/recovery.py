"""`partvisor crash NAME` and `partvisor service root`: have a root or driver replaced, the hard and the planned way."""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import click

from bus.seam import PASSES_MAX, Step
from runtime.commands.machines import _client, _machine_option
from runtime.commands.shared_options import json_option
from runtime.exits import CommandError, ExitCode
from runtime.reports import print_json
from runtime.reserved_names import ROOT

if TYPE_CHECKING:
    from runtime.machine.events import Event
    from runtime.machine.management_client import ManagementClient

_WAIT_S_MAX: Final = 60.0
_POLL_S: Final = 0.01


@click.command()
@click.argument("name")
@click.option(
    "--hang", "how", flag_value="hang", help="Stop it (SIGSTOP): the hypervisor misses its heartbeat."
)
@click.option(
    "--stuck", "how", flag_value="stuck", help="Heartbeats go on, no channel moves: its watchdog acts."
)
@click.option(
    "--at", type=click.Choice([step.text for step in Step]), hidden=True, help="Exactly at this step."
)
@click.option("--after", type=click.IntRange(1, PASSES_MAX), default=1, hidden=True, help="At its N-th pass.")
@_machine_option
@json_option
def crash(name: str, how: str | None, at: str | None, after: int, machine: str | None, as_json: bool) -> int:
    """Break the root, or a driver partition, on purpose, and say how long it took until it served again.

    By SIGKILL unless told otherwise. A driver partition has the name of its device.

    \b
    Example:
      partvisor crash root
      partvisor crash root --hang
      partvisor crash disk0
    """
    if at is not None and how is not None:
        raise click.UsageError("--at is a way to crash of its own")
    with _client(machine) as client:
        verb = "crash"
        args: dict[str, Any] = {"how": how or "kill"}
        if at is not None:
            verb, args = "seam", {"step": at, "passes": after, "deaths": 1}
        if name == ROOT:
            return _replace(client, verb, args, as_json)
        return _restart(client, f"{verb}-driver", {"name": name, **args}, as_json)


@click.command()
@click.argument("name", type=click.Choice(["root"]))
@_machine_option
@json_option
def service(name: str, machine: str | None, as_json: bool) -> int:
    """Replace a healthy root under load: it finishes what it is doing, saves, and makes room.

    \b
    Example:
      partvisor service root
    """
    with _client(machine) as client:
        return _replace(client, "service", {}, as_json)


def _restart(client: "ManagementClient", verb: str, args: dict[str, Any], as_json: bool) -> int:
    """As `_replace`, for a driver partition."""
    name = args["name"]

    def is_its(event: "Event") -> bool:
        return bool(event.partition == name or event.fields.get("device") == name)

    asked_ns, seen = _ask(client, verb, args, ("driver.serving", "driver.failed"), is_its)
    exited = seen["partition.exited"]
    if "driver.failed" in seen:
        raise CommandError(f"{name} has failed for good: {exited['reason']}")
    serving = seen["driver.serving"]
    result = {
        "reason": exited["reason"],
        "generation": serving["generation"],
        "pid": seen["partition.started"]["pid"],
        "served_after_ms": (serving["serving_ns"] - asked_ns) / 1e6,
    }
    if as_json:
        print_json(result)
    else:
        print(
            f"{name} {result['generation']} (pid {result['pid']}) serves, {result['served_after_ms']:.1f} ms after"
            f" the old one was to end ({result['reason']})"
        )
    return ExitCode.DONE


def _replace(client: "ManagementClient", verb: str, args: dict[str, Any], as_json: bool) -> int:
    """Ask, then follow the events until the successor serves. CommandError: it does not, and why."""
    asked_ns, seen = _ask(client, verb, args, ("root.restored",), lambda event: True)
    restored, started = seen["root.restored"], seen["root.started"]
    noticed_ns = seen["root.exited"]["at_ns"]
    result = {
        "reason": seen["root.exited"]["reason"],
        "generation": started["generation"],
        "pid": started["pid"],
        "noticed_ms": (noticed_ns - asked_ns) / 1e6,
        "replaced_ms": (restored["serving_ns"] - noticed_ns) / 1e6,
    }
    if as_json:
        print_json(result)
    else:
        print(
            f"root {result['generation']} (pid {result['pid']}) serves: the end of the old one ({result['reason']})"
            f" was seen after {result['noticed_ms']:.1f} ms, the new one served {result['replaced_ms']:.1f} ms later"
        )
    return ExitCode.DONE


def _ask(
    client: "ManagementClient",
    verb: str,
    args: dict[str, Any],
    ends: tuple[str, ...],
    concerns: Callable[["Event"], bool],
) -> tuple[int, dict[str, dict[str, Any]]]:
    """When it was asked, and the last event of each kind, up to one of `ends`. CommandError: none came, and why."""
    last = client.last_sequence()
    asked_ns = time.monotonic_ns()
    client.request(verb, **args)
    seen: dict[str, dict[str, Any]] = {}
    deadline = time.monotonic() + _WAIT_S_MAX
    while not any(kind in seen for kind in ends):
        if "machine.ending" in seen:
            raise CommandError(f"the machine goes down: {seen['machine.ending']['reason']}")
        if time.monotonic() > deadline:
            raise CommandError(
                f"nobody has taken over within {_WAIT_S_MAX:g} s; see: partvisor events --no-follow"
            )
        time.sleep(_POLL_S)
        for event in client.past_events(last):
            last = event.sequence
            if concerns(event) or event.kind == "machine.ending":
                seen[event.kind] = event.fields
    return asked_ns, seen
