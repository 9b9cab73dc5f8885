"""`partvisor console`: a terminal on a partition's serial line."""

import os

import click

from runtime.exits import ExitCode
from runtime.reports import print_json


@click.command()
@click.argument("name")
@click.option("-m", "--machine", metavar="NAME", help="Which machine; may be left out when only one runs.")
@click.option(
    "--log", is_flag=True, help="Print what is kept of what it said, with times, and do not attach."
)
@click.option("--json", "as_json", is_flag=True, help="With --log: print JSON.")
@click.option(
    "--quiet-ms",
    type=click.IntRange(0, 3_600_000),
    default=500,
    show_default=True,
    help="Without a terminal: once the input has ended, wait until the line says nothing for so long.",
)
def console(name: str, machine: str | None, log: bool, as_json: bool, quiet_ms: int) -> int:
    """Attach to the serial line of partition NAME.

    Type Ctrl-] to detach; the partition runs on. One terminal at a time. Without a terminal, what comes in is typed,
    and what the line says goes out.

    NAME may be that of the line's device, too.

    \b
    Example:
      partvisor console pc
      partvisor console pc --log
      echo hello | partvisor console pc
    """
    from runtime.machine.console_client import ESCAPE, attach, connect, read_log
    from runtime.machine.rundir import resolve

    if as_json and not log:
        raise click.UsageError("--json goes with --log")
    folder = resolve(machine)
    with connect(folder, name, log=log) as line:  # a socket
        if log:
            lines = read_log(line)
            if as_json:
                print_json({"lines": [{"time": time, "text": text} for time, text in lines]})
            else:
                for time, text in lines:
                    print(f"{time}  {text}")
            return ExitCode.DONE
        escape = ESCAPE if os.isatty(0) else None
        ended = attach(line, quiet_ms=quiet_ms, escape=escape)
    if escape is not None or ended:
        click.echo("the machine has ended" if ended else "detached", err=True)
    return ExitCode.DONE
