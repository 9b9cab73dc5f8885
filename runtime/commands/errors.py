"""`partvisor errors`: what the machine's real devices have run into."""

import datetime
import errno
import os
from typing import Any

import click

from runtime.commands.machines import _client, _machine_option
from runtime.commands.shared_options import json_option
from runtime.exits import ExitCode
from runtime.reports import print_json, print_table


@click.command()
@click.argument("device", required=False)
@_machine_option
@json_option
def errors(device: str | None, machine: str | None, as_json: bool) -> int:
    """List the hardware error records of a machine, or those of DEVICE.

    A record stands for all errors of one kind: who had them, how often, the first and the last time, how severe. The
    device's on_error says what was done about them.

    \b
    Example:
      partvisor errors
      partvisor errors disk0 --json
    """
    with _client(machine) as client:
        order = {} if device is None else {"device": device}
        rows: list[dict[str, Any]] = client.request("operate", operation="errors", name="", order=order)[
            "errors"
        ]
    if as_json:
        print_json({"errors": rows})
        return ExitCode.DONE
    print_table([_row(one) for one in rows], "no hardware errors")
    return ExitCode.DONE


def _row(record: dict[str, Any]) -> dict[str, object]:
    last = datetime.datetime.fromtimestamp(record["last_ns"] / 1e9)  # for people, here
    number = record["errno"]
    return {
        "device": record["device"],
        "operation": record["operation"],
        "error": f"{errno.errorcode.get(number, number)}: {os.strerror(number)}",
        "severity": record["severity"],
        "count": record["count"],
        "last": last.strftime("%H:%M:%S"),
        "generation": record["generation"],
        "on_error": record["policy"],
        "device is": record["condition"],
    }
