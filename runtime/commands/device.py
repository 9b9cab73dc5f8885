"""`partvisor device`: devices that come and go while a machine runs."""

import os
from pathlib import Path
from typing import Any, Final

import click

from runtime.commands.machines import _client, _machine_option
from runtime.commands.saving_progress import interruptible
from runtime.commands.shared_options import json_option
from runtime.exits import ExitCode
from runtime.reports import print_json, print_table

_ATTACHMENT_KEYS: Final = ("ring_bytes", "signal_route", "waiting")  # of a [[partition.device]] table
_PATHS: Final = ("path",)
_OUTCOME: Final = "the machine carries out what it has begun; partvisor device list says what became of it"


@click.group()
def device() -> None:
    """Add devices to a running machine, take them away, list them.

    \b
    Example:
      partvisor device list
      partvisor device add writer disk1 kind=disk backend=memory size=8MiB
    """


@device.command("add")
@click.argument("name")
@click.argument("target", metavar="DEVICE")
@click.argument("values", nargs=-1, metavar="[KEY=VALUE]...")
@click.option(
    "--table",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="A TOML file with the keys of a [[root.device]] table; paths start at its folder.",
)
@_machine_option
@json_option
def add(
    name: str, target: str, values: tuple[str, ...], table: Path | None, machine: str | None, as_json: bool
) -> int:
    """Offer DEVICE to the running partition NAME.

    Without keys it is a device that the machine has. With the keys of a [[root.device]] table it is a new one. The keys
    ring_bytes, signal_route and waiting say how NAME gets it.

    \b
    Example:
      partvisor device add writer disk1 kind=disk backend=file path=disk1.img size=64MiB
      partvisor device add reader disk1 waiting=block
    """
    keys = _table_of(table) | _values_of(values)
    attachment = {key: keys.pop(key) for key in _ATTACHMENT_KEYS if key in keys}
    order = {"device": {**keys, "name": target}, "attachment": attachment}
    with interruptible(_OUTCOME), _client(machine) as client:
        answer = client.request("operate", operation="device-add", name=name, order=order)
    if as_json:
        print_json(answer)
    else:
        print(f"{name} has {target}")
    return ExitCode.DONE


@device.command("remove")
@click.argument("name")
@click.argument("target", metavar="DEVICE")
@_machine_option
@json_option
def remove(name: str, target: str, machine: str | None, as_json: bool) -> int:
    """Take DEVICE away from the running partition NAME.

    Requests under way have a second to be answered; those that are not then fail. When no partition has the device any
    more, it is closed.

    \b
    Example:
      partvisor device remove writer disk1
    """
    with interruptible(_OUTCOME), _client(machine) as client:
        answer = client.request("operate", operation="device-remove", name=name, order={"device": target})
    if as_json:
        print_json(answer)
        return ExitCode.DONE
    forced = "; requests were under way, and failed" if answer["forced"] else ""
    held = "" if answer["let_go"] else "; its server has not let go of it yet"
    print(f"{name} has {target} no more{forced}{held}")
    return ExitCode.DONE


@device.command("list")
@_machine_option
@json_option
def list_(machine: str | None, as_json: bool) -> int:
    """List the root's devices, and which partitions have them.

    \b
    Example:
      partvisor device list
    """
    with _client(machine) as client:
        devices: list[dict[str, Any]] = client.request("operate", operation="device-list", name="", order={})[
            "devices"
        ]
    if as_json:
        print_json({"devices": devices})
        return ExitCode.DONE
    rows = [
        {
            "device": one["device"],
            "kind": one["kind"],
            "backend": one["backend"] or "-",
            "path": one["path"] or "-",
            "partitions": ", ".join(one["partitions"]) or "-",
        }
        for one in devices
    ]
    print_table(rows, "no devices")
    return ExitCode.DONE


def _table_of(file: Path | None) -> dict[str, Any]:
    if file is None:
        return {}
    import tomllib

    try:
        keys = tomllib.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise click.UsageError(f"{file}: {error}") from None
    return _with_absolute_paths(keys, file.absolute().parent)


def _values_of(texts: tuple[str, ...]) -> dict[str, Any]:
    import tomllib

    keys: dict[str, Any] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise click.UsageError(f"{text}: want KEY=VALUE, such as kind=disk")
        try:
            keys[key] = tomllib.loads(f"value = {value}")["value"]
        except tomllib.TOMLDecodeError:
            keys[key] = value
    return _with_absolute_paths(keys, Path.cwd())


def _with_absolute_paths(keys: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The machine runs in another folder."""
    for key in _PATHS:
        if isinstance(keys.get(key), str):
            keys[key] = os.path.normpath(folder / keys[key])
    return keys
