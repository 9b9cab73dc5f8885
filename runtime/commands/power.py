"""`partvisor pause`, `resume`, `save` and `restore`: partitions that stand still, and go on where they were."""

from pathlib import Path
from typing import Any

import click

from runtime.commands.machines import _client, _machine_option
from runtime.commands.saving_progress import _copying_client, interruptible, telling_progress
from runtime.commands.shared_options import json_option
from runtime.exits import ExitCode
from runtime.reports import print_json


@click.command()
@click.argument("name", required=False)
@click.option("--all", "everything", is_flag=True, help="The whole machine, the root and its drivers too.")
@_machine_option
@json_option
def pause(name: str | None, everything: bool, machine: str | None, as_json: bool) -> int:
    """Stop partition NAME, and all below it, where they are, until `partvisor resume`.

    Its processors are not run and its reference time stands still. Nobody takes it for hung meanwhile.

    \b
    Example:
      partvisor pause writer
      partvisor pause --all
    """
    return _power("pause", name, everything, machine, as_json)


@click.command()
@click.argument("name", required=False)
@click.option("--all", "everything", is_flag=True, help="The whole machine.")
@_machine_option
@json_option
def resume(name: str | None, everything: bool, machine: str | None, as_json: bool) -> int:
    """Have partition NAME, and all below it, go on after `partvisor pause`.

    \b
    Example:
      partvisor resume writer
      partvisor resume --all
    """
    return _power("resume", name, everything, machine, as_json)


@click.command()
@click.argument("name")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@click.option(
    "--go-on", is_flag=True, help="It goes on afterwards; what it then writes to its disks is not in FILE."
)
@_machine_option
@json_option
def save(name: str, file: Path, go_on: bool, machine: str | None, as_json: bool) -> int:
    """Save partition NAME to FILE, and end it.

    Saved are its memory, what the hypervisor keeps of it, its emulated devices, and what its program says by
    partition.on_save; it needs integration = true. Its disks are flushed and named in FILE, not copied; they must be as
    they are now when it goes on. Ctrl-C gives it up: there is no FILE, and the partition goes on.

    \b
    Example:
      partvisor save writer writer.saved
      partvisor run configs/quickstart.toml --set partition.writer.restore=writer.saved
    """
    order = {"path": str(file.absolute()), "go_on": go_on}
    with (
        interruptible("whether it is done says partvisor events --no-follow"),
        _copying_client(machine) as client,
        telling_progress(machine, name),
    ):
        answer: dict[str, Any] = client.request_or_cancel("operate", operation="save", name=name, order=order)
    if as_json:
        print_json(answer)
    else:
        memory = f"{answer['memory_bytes'] >> 10} KiB of memory"
        goes_on = "; it goes on" if go_on else ""
        print(f"{name} is saved in {file}: {memory} in {answer['bytes']} bytes{goes_on}")
    return ExitCode.DONE


@click.command()
@click.argument("name")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@_machine_option
@json_option
def restore(name: str, file: Path, machine: str | None, as_json: bool) -> int:
    """Have partition NAME, which has ended, go on from FILE.

    In a machine that is about to start, set partition.NAME.restore instead.

    \b
    Example:
      partvisor restore writer writer.saved
    """
    with interruptible("whether it is done says partvisor list"), _copying_client(machine) as client:
        answer: dict[str, Any] = client.request_or_cancel(
            "operate", operation="restore", name=name, order={"path": str(file.absolute())}
        )
    if as_json:
        print_json(answer)
    else:
        print(f"{name} goes on from {file}")
    return ExitCode.DONE


def _power(verb: str, name: str | None, everything: bool, machine: str | None, as_json: bool) -> int:
    if everything is (name is not None):
        raise click.UsageError(f"{verb} wants a partition, or --all")
    with _client(machine) as client:
        answer: dict[str, Any] = client.request("operate", operation=verb, name=name or "", order={})
    if as_json:
        print_json(answer)
    elif answer["names"]:
        print(f"{verb}d: {', '.join(answer['names'])}")
    else:
        print(f"nothing to {verb}: it was done before")
    return ExitCode.DONE
