"""`partvisor authority`: who of a running machine's processes holds what, and whether the config grants it."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import click

from runtime.commands.machines import _machine_option
from runtime.commands.shared_options import json_option
from runtime.exits import CommandError, ExitCode
from runtime.reports import print_json, print_table

if TYPE_CHECKING:
    from runtime.authority.inspection import Report


class NoSuchProcess(CommandError):
    """The machine has none of that name."""

    exit_code: ClassVar[ExitCode] = ExitCode.NOT_FOUND


@click.command()
@click.argument("name", required=False)
@click.option("--all", "everything", is_flag=True, help="Also what reaches nobody: timers, private memory.")
@click.option("--html", "page", type=click.Path(path_type=Path), help="Write a picture: processes by memory.")
@_machine_option
@json_option
def authority(
    name: str | None, everything: bool, page: Path | None, machine: str | None, as_json: bool
) -> int:
    """Show which memory, doorbells, sockets and devices each process holds; of NAME, or of all.

    Read from the machine's own /proc, named by the hypervisor's tables, and compared with what the config grants. Exits
    with 1 if something is unexplained, or held beyond the grant, or if a process may not be looked at.

    \b
    Example:
      partvisor authority
      partvisor authority disk0 --json
      partvisor authority --html authority.html
    """
    from runtime.authority.inspection import inspect
    from runtime.machine.debug_client import HypervisorSilent
    from runtime.machine.rundir import resolve

    folder = resolve(machine)
    try:
        report = inspect(folder)
    except HypervisorSilent as silent:
        raise CommandError(f"the hypervisor names nothing: {silent}; see: partvisor debug") from silent
    if name is not None and name not in report.processes:
        known = ", ".join(sorted(report.processes))
        raise NoSuchProcess(f"no process of this machine is called {name!r}; there are {known}")
    if page is not None:
        _write(page, folder.name, report)
    print_json(_document(report, name)) if as_json else _print(report, name, everything)
    return ExitCode.DONE if report.is_clean else ExitCode.FAILED


def _document(report: "Report", name: str | None) -> dict[str, Any]:
    return {
        "clean": report.is_clean,
        "processes": {
            process: {
                "pid": pid,
                "unreadable": report.unreadable.get(process),
                "holds": [held.row() for held in report.holdings if held.process == process],
            }
            for process, pid in report.processes.items()
            if name in (None, process)
        },
        "unexplained": [one.row() for one in report.excess if one.held.kind == "unexplained"],
        "beyond_the_config": [one.row() for one in report.excess if one.held.kind != "unexplained"],
        "unknown_processes": list(report.strangers),
        "root_silent": report.silent,
    }


def _print(report: "Report", name: str | None, everything: bool) -> None:
    for process, pid in report.processes.items():
        if name not in (None, process):
            continue
        print(f"{process} (pid {pid})")
        if (why := report.unreadable.get(process)) is not None:
            print(f"  not looked at: {why}\n")
            continue
        rows = [
            {
                "kind": str(held.kind),
                "of": held.subject,
                "access": held.access,
                "pages": held.mapped_pages or None,
                "descriptors": held.descriptors or None,
                "what": held.what,
            }
            for held in report.holdings
            if held.process == process and (everything or held.kind != "own")
        ]
        print_table(rows, "  nothing that reaches anybody")
        print()
    if report.silent is not None:
        print(f"channels are not named by their devices: {report.silent}")
    for stranger in report.strangers:
        print(f"unknown to the hypervisor: process {stranger}")
    if report.unreadable:
        print(f"not looked at, so nothing is said of them: {', '.join(sorted(report.unreadable))}")
    if report.excess:
        print("what should not be:")
        print_table([_short(one.row()) for one in report.excess], "")
    elif report.is_clean:
        print("everything is explained, and granted by the config")


def _short(row: dict[str, object]) -> dict[str, object]:
    return {key: row[key] for key in ("process", "kind", "subject", "access", "why", "what")}


def _write(path: Path, machine: str, report: "Report") -> None:
    from runtime.authority.picture import authority_page

    try:
        path.write_text(authority_page(machine, report), encoding="utf-8")
    except OSError as error:
        raise CommandError(f"{path}: {error.strerror}; choose another --html FILE") from error
