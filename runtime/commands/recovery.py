"""`partvisor crash root` and `partvisor service root`: have the root replaced, the hard way and the planned way."""

import time
from typing import TYPE_CHECKING, Any, Final

import click

from bus.seam import PASSES_MAX, Step
from runtime.commands.machines import _client, _json_option, _machine_option
from runtime.exits import CommandError, ExitCode
from runtime.reports import print_json

if TYPE_CHECKING:
    from runtime.management_client import ManagementClient

_WAIT_S_MAX: Final = 60.0
_POLL_S: Final = 0.01


@click.command()
@click.argument("name", type=click.Choice(["root"]))
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
@_json_option
def crash(name: str, how: str | None, at: str | None, after: int, machine: str | None, as_json: bool) -> int:
    """Break the root on purpose, by SIGKILL unless told otherwise, and say how long it took until it served again.

    \b
    Example:
      partvisor crash root
      partvisor crash root --hang
    """
    if at is not None and how is not None:
        raise click.UsageError("--at is a way to crash of its own")
    with _client(machine) as client:
        if at is not None:
            return _replace(client, "seam", {"step": at, "passes": after, "deaths": 1}, as_json)
        return _replace(client, "crash", {"how": how or "kill"}, as_json)


@click.command()
@click.argument("name", type=click.Choice(["root"]))
@_machine_option
@_json_option
def service(name: str, machine: str | None, as_json: bool) -> int:
    """Replace a healthy root under load: it finishes what it is doing, saves, and makes room.

    \b
    Example:
      partvisor service root
    """
    with _client(machine) as client:
        return _replace(client, "service", {}, as_json)


def _replace(client: "ManagementClient", verb: str, args: dict[str, Any], as_json: bool) -> int:
    """Ask, then follow the events until the successor serves. CommandError: it does not, and why."""
    last = int(client.request("events", since=0)["last_sequence"])
    asked_ns = time.monotonic_ns()
    client.request(verb, **args)
    seen: dict[str, dict[str, Any]] = {}
    deadline = time.monotonic() + _WAIT_S_MAX
    while "root.restored" not in seen:
        if "machine.ending" in seen:
            raise CommandError(f"the machine goes down: {seen['machine.ending']['reason']}")
        if time.monotonic() > deadline:
            raise CommandError(
                f"no root has taken over within {_WAIT_S_MAX:g} s; see: partvisor events --no-follow"
            )
        time.sleep(_POLL_S)
        reply = client.request("events", since=last)
        for event in reply["events"]:
            last = event["sequence"]
            seen[event["kind"]] = event["fields"]
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
