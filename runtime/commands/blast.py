"""`partvisor blast`: one driver misbehaves under each architecture; who dies with it?"""

from __future__ import annotations

from pathlib import Path

import click

from runtime.commands.shared_options import (
    ARCHITECTURES,
    architectures_option,
    html_option,
    json_option,
    overrides_option,
)
from runtime.commands.word_list import WordList
from runtime.exits import CommandError, ExitCode
from runtime.reports import print_json, print_table

_FAULTS = (
    "crash", "hang", "busy-loop", "wild-write", "memory-leak", "fork-bomb", "fd-exhaustion", "garbage-replies",
    "double-replies", "no-replies",
)  # fmt: skip
ROUNDS_MAX = 100
AFTER_MAX = 100_000


@click.command()
@click.argument("config", type=click.Path())
@architectures_option
@click.option(
    "--fault",
    "faults",
    metavar="F[,G...]",
    type=WordList(*_FAULTS),
    default="",
    help=f"Only these; default: all of {', '.join(_FAULTS)}.",
)
@click.option("--target", metavar="DEVICE", help="Whose driver; default: the first verifying guest's disk.")
@click.option(
    "--rounds", type=click.IntRange(1, ROUNDS_MAX), default=1, show_default=True, help="Of all cells."
)
@click.option(
    "--seed", type=click.IntRange(1, (1 << 18) - 1), default=1, show_default=True, help="Of load and faults."
)
@click.option(
    "--after",
    type=click.IntRange(0, AFTER_MAX),
    default=300,
    show_default=True,
    help="So many requests the driver serves well.",
)
@overrides_option
@html_option
@json_option
def blast(
    config: str,
    architectures: tuple[str, ...],
    faults: tuple[str, ...],
    target: str | None,
    rounds: int,
    seed: int,
    after: int,
    overrides: tuple[str, ...],
    html: Path | None,
    as_json: bool,
) -> int:
    """Have one disk's driver misbehave under each architecture, and say what dies with it.

    For each fault and architecture a machine is booted, guests verify two disks, and the driver of one does harm.
    Reported is who died, how long guests on this disk and on the other one waited, whose data is wrong, and whether it
    came back. Exit code 1: something contradicts what docs/isolation.md promises, or a fault did not happen.

    The harm is bounded: at most 200 processes, 512 MiB, and 10 seconds.

    \b
    Example:
      partvisor blast configs/blast.toml
      partvisor blast configs/blast.toml --architecture disaggregated,monolithic --fault crash,wild-write
      partvisor blast configs/blast.toml --rounds 3 --html blast.html
    """
    import signal

    from runtime.blast.campaign import Plan
    from runtime.blast.campaign import blast as run
    from runtime.blast.faults import Fault
    from runtime.blast.machine_files import choose_target
    from runtime.blast.matrix import LEGEND, cell_text, rows, sentences
    from runtime.config.architecture import Architecture
    from runtime.config.loading import load

    chosen = choose_target(load(config, overrides), config, target)
    if html is not None and not html.absolute().parent.is_dir():  # before minutes of trials
        raise CommandError(f"{html}: there is no such folder; make it first")
    plan = Plan(
        source=config,
        target=chosen,
        architectures=tuple(map(Architecture, architectures or ARCHITECTURES)),
        faults=tuple(map(Fault, faults or _FAULTS)),
        overrides=overrides,
        rounds=rounds,
        seed=seed,
        after=after,
    )
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: the machine ends, files of ours go
    result = run(plan, lambda line: click.echo(line, err=True), cell_text)
    if html is not None:
        from runtime.blast.page import blast_page

        try:
            html.write_text(blast_page(result), "utf-8")
        except OSError as error:
            raise CommandError(f"{html}: {error.strerror}; name another file") from error
    if as_json:
        print_json(result.to_table())
    else:
        print_table(rows(result), "nothing was tried")
        print(f"\n{LEGEND}\n")
        print("\n".join(sentences(result)))
        print(f"\n{result.seconds:.0f} s, rounds {rounds}, seed {seed}, target {chosen}")
    return ExitCode.FAILED if result.contradictions or result.inconclusive else ExitCode.DONE
