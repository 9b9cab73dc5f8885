"""`partvisor kvp` and `backup`: what a guest does by its integration services."""

from pathlib import Path
from typing import Any

import click

from runtime.commands.machines import _client, _machine_option
from runtime.commands.saving_progress import interruptible
from runtime.commands.shared_options import json_option
from runtime.exits import ExitCode
from runtime.reports import print_json, print_table


@click.command()
@click.argument("name")
@click.argument("operation", type=click.Choice(["get", "set", "delete", "list"]))
@click.argument("key", default="")
@click.argument("value", default="")
@click.option(
    "--pool",
    type=click.Choice(["external", "guest", "auto", "auto_external"]),
    help="Left out: set and delete mean external, get and list look into every one but auto_external.",
)
@_machine_option
@json_option
def kvp(
    name: str, operation: str, key: str, value: str, pool: str | None, machine: str | None, as_json: bool
) -> int:
    """Read and write the key-value pairs that partition NAME shares with its host.

    The pairs are kept by the guest: in pool external what the host tells it, in guest what it tells the host, in auto
    what every guest tells. The partition needs integration = true, and a program that takes partition.integration.

    \b
    Example:
      partvisor kvp writer set role database
      partvisor kvp writer get OSName
      partvisor kvp writer list
    """
    if operation != "list" and not key:
        raise click.UsageError(f"{operation} wants a KEY")
    order: dict[str, Any] = {"operation": operation, "pool": pool, "key": key, "value": value}
    outcome = f"{name} may still do it" if operation in ("set", "delete") else "nothing has changed"
    with interruptible(outcome), _client(machine) as client:
        answer = client.request("integration", name=name, service="kvp", order=order)
    if as_json:
        print_json(answer)
    elif operation == "list":
        print_table(answer["pairs"], "no pairs")
    elif operation == "get":
        print(answer["value"])
    return ExitCode.DONE


@click.command()
@click.argument("name")
@click.argument("device")
@click.argument("out", type=click.Path(path_type=Path, dir_okay=False))
@_machine_option
@json_option
def backup(name: str, device: str, out: Path, machine: str | None, as_json: bool) -> int:
    """Copy a disk of partition NAME into the file OUT while it runs, consistently.

    The guest comes to rest, the backing file is copied, the guest goes on; it rests for 10 s at most. What is not
    copied by then is not kept.

    \b
    Example:
      partvisor backup writer disk0 disk0.backup
    """
    from runtime.machine.backup import back_up

    with interruptible(f"{out} is as it was, and {name} goes on"), _client(machine) as client:
        done = back_up(client, name, device, out)
    if as_json:
        print_json(done)
    else:
        print(f"{done['bytes']} bytes of {device} in {out}; {name} rested for {done['rested_ms']} ms")
    return ExitCode.DONE
