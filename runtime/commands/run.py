"""`partvisor run`: boot a machine."""

import contextlib
from pathlib import Path

import click

from runtime.commands.shared_options import ARCHITECTURES, overrides_option
from runtime.reports import print_json


@click.command()
@click.argument("config", type=click.Path())
@click.option("-d", "--detach", is_flag=True, help="Run it in the background; return when it has booted.")
@overrides_option
@click.option(
    "--on-root-failure",
    type=click.Choice(["halt", "restart", "standby"]),
    help="What happens when the root dies; else as the config says.",
)
@click.option(
    "--architecture",
    type=click.Choice(ARCHITECTURES),
    help="Who runs the root's devices; else as the config says.",
)
@click.option(
    "--post-mortem",
    type=click.Path(path_type=Path),
    help="If the machine fails, keep the hypervisor's last events in this file, for: partvisor debug --post-mortem.",
)
@click.option(
    "--trace",
    type=click.Path(path_type=Path),
    help="Stamp the hops of every request; what is kept goes into this file at the end, for: partvisor trace FILE.",
)
@click.option("--json", "as_json", is_flag=True, help="Print events, or with -d the machine, as JSON lines.")
def run(
    config: str,
    detach: bool,
    overrides: tuple[str, ...],
    on_root_failure: str | None,
    architecture: str | None,
    post_mortem: Path | None,
    trace: Path | None,
    as_json: bool,
) -> int:
    """Boot the machine of a config file.

    In the foreground it prints what happens until the machine ends; Ctrl-C ends it.

    \b
    Example:
      partvisor run configs/quickstart.toml
      partvisor run -d configs/quickstart.toml --set partition.writer.memory=128MiB
    """
    from runtime.config.loading import load
    from runtime.machine.events import Event
    from runtime.machine.launch import run_detached, run_in_foreground

    if on_root_failure is not None:
        overrides = (*overrides, f"machine.on_root_failure={on_root_failure}")
    if architecture is not None:
        overrides = (*overrides, f"machine.architecture={architecture}")
    machine = load(config, overrides)
    if detach:
        started = run_detached(machine, post_mortem, trace)
        name, pid = started["name"], started["pid"]
        if as_json:
            print_json(started)
        else:
            print(f"machine {name} runs (pid {pid}); stop it with: partvisor stop --machine {name}")
        return 0

    from runtime.commands.machines import event_fields, event_line

    def show(event: Event, encoded: bytes) -> None:
        with contextlib.suppress(BrokenPipeError):  # the machine does not depend on being watched
            print_json(event_fields(event)) if as_json else print(event_line(event), flush=True)

    return run_in_foreground(machine, show, post_mortem, trace)
