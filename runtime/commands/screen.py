"""`partvisor screen`: where a partition's screen can be looked at, and a picture of it."""

import os
from pathlib import Path

import click

from runtime.commands.machines import _client, _machine_option
from runtime.commands.shared_options import json_option
from runtime.exits import CommandError, ExitCode
from runtime.reports import print_json


class HasNoScreen(CommandError):
    """The partition has no video device. One line."""

    exit_code = ExitCode.NOT_FOUND


@click.command()
@click.argument("name")
@click.option(
    "--png", type=click.Path(path_type=Path, dir_okay=False), help="Write what it shows now into this file."
)
@_machine_option
@json_option
def screen(name: str, png: Path | None, machine: str | None, as_json: bool) -> int:
    """Say how to look at the screen of partition NAME, or write a picture of it.

    Any VNC viewer shows it, types into it and moves its mouse. The partition needs a device of kind = "video".

    \b
    Example:
      partvisor screen painter
      partvisor screen painter --png out.png
    """
    with _client(machine) as client:
        addresses = client.request("show", name=name).get("screen")
    if addresses is None:
        raise HasNoScreen(
            f'partition {name} has no screen: give it a [[root.device]] of kind = "video" (docs/display.md)'
        )
    if png is None:
        print_json({"name": name, **addresses}) if as_json else _print(addresses)
        return ExitCode.DONE
    from runtime.drawing.png import png_of
    from runtime.machine.screen_client import look_at

    seen = look_at(Path(addresses["unix"]))
    try:
        _replace(png, png_of(seen.width, seen.height, seen.pixels))
    except OSError as error:
        raise CommandError(f"{png}: {error.strerror}: choose another file") from error
    if as_json:
        print_json({"name": name, "png": str(png), "width": seen.width, "height": seen.height})
    else:
        click.echo(f"{png}: {seen.width} x {seen.height} pixels")
    return ExitCode.DONE


def _replace(path: Path, data: bytes) -> None:
    """Whole, or it stays as it was. What is no file, such as a pipe, is written into."""
    if path.exists() and not path.is_file():
        path.write_bytes(data)
        return
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.write_bytes(data)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _print(addresses: dict[str, str]) -> None:
    print(f"socket  {addresses['unix']}")
    if "tcp" in addresses:
        host, _, port = addresses["tcp"].rpartition(":")
        print(f"port    {addresses['tcp']}")
        print(f"to see  vncviewer {host}::{port}")
    else:
        print(f"to see  vncviewer {addresses['unix']}")
