"""The `partvisor` command. Subcommands are in runtime/commands and import what they need when they run."""

import os
import sys
from collections.abc import Sequence

import click

from runtime.commands import (
    attack,
    authority,
    bench,
    blast,
    capture,
    chaos,
    compare,
    config_file,
    console,
    debug,
    device,
    doctor,
    errors,
    faults,
    integration,
    machines,
    new,
    power,
    recovery,
    run,
    sched,
    screen,
    simulate,
    trace,
)
from runtime.exits import CommandError, ExitCode

_EXIT_CODES = """\b
Exit codes:
  0    done
  1    the machine went down, or a check failed
  2    the command line or the config file is wrong; nothing was started
  3    no machine, or no partition, of that name
  4    the machine is there and does not answer in time
  130  interrupted by Ctrl-C"""


@click.group(
    no_args_is_help=True,
    epilog=_EXIT_CODES,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(package_name="partvisor", prog_name="partvisor")
def cli() -> None:
    """Run a Hyper-V-style machine made of ordinary processes.

    \b
    Example:
      partvisor validate configs/quickstart.toml
      partvisor run -d configs/quickstart.toml
      partvisor list
      partvisor stop
    """


for command in (
    run.run,
    config_file.validate,
    config_file.schema,
    new.new,
    machines.list_,
    machines.show,
    machines.interrupts,
    authority.authority,
    machines.events,
    machines.stop,
    machines.kill,
    console.console,
    screen.screen,
    capture.capture,
    integration.kvp,
    integration.backup,
    sched.sched,
    device.device,
    errors.errors,
    power.pause,
    power.resume,
    power.save,
    power.restore,
    recovery.crash,
    recovery.service,
    faults.faults,
    faults.inject,
    faults.injected,
    faults.heal,
    chaos.chaos,
    debug.debug,
    debug.reboot,
    bench.bench,
    compare.compare,
    attack.attack,
    blast.blast,
    trace.trace,
    simulate.simulate,
    doctor.doctor,
):
    cli.add_command(command)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code. Every error that a user can meet is one line on stderr."""
    try:
        result = cli.main(arguments, prog_name="partvisor", standalone_mode=False)
        sys.stdout.flush()
    except click.exceptions.Abort:
        return ExitCode.INTERRUPTED
    except KeyboardInterrupt:
        return ExitCode.INTERRUPTED
    except click.exceptions.NoArgsIsHelpError as error:
        print(error.format_message(), file=sys.stderr)
        return ExitCode.USAGE
    except click.UsageError as error:
        see = f"; see: {error.ctx.command_path} --help" if error.ctx else ""
        _complain(error.format_message().rstrip(".") + see)
        return ExitCode.USAGE
    except click.ClickException as error:
        _complain(error.format_message())
        return ExitCode.USAGE
    except CommandError as error:
        _complain(str(error))
        return error.exit_code
    except SystemExit as end:  # click's own way out: shell completion, or a broken pipe while printing
        return int(end.code or 0) if "_PARTVISOR_COMPLETE" in os.environ else ExitCode.DONE
    except BrokenPipeError:  # whoever read our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ExitCode.DONE
    return result if isinstance(result, int) else ExitCode.DONE


def _complain(text: str) -> None:
    print(f"partvisor: {text}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
