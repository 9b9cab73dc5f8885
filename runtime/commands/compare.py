"""`partvisor compare`: one workload under each architecture."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from runtime.commands.shared_options import (
    architectures_option,
    html_option,
    json_option,
    label_option,
    no_store_option,
    overrides_option,
    store_option,
)
from runtime.commands.word_list import WordList
from runtime.exits import CommandError, ExitCode
from runtime.reports import print_json, print_table

if TYPE_CHECKING:
    from runtime.measure.compare_run import CompareOptions

_ROUTES = ("direct", "broker")
_WAITS = ("adaptive", "spin", "block")
ROUNDS_MAX = 200


@click.command()
@click.argument("config", type=click.Path())
@architectures_option
@click.option(
    "--routes",
    metavar="A[,B]",
    type=WordList(*_ROUTES),
    default="",
    help="Each architecture with direct or broker routing of interrupts, or both.",
)
@click.option(
    "--waits",
    metavar="A[,B...]",
    type=WordList(*_WAITS),
    default="",
    help="Each architecture with both sides waiting so: adaptive, spin or block.",
)
@click.option("--all", "everything", is_flag=True, help="Every architecture, route, and spin and block.")
@click.option("--rounds", type=click.IntRange(1, ROUNDS_MAX), help="Boots of each variant; default: 5.")
@click.option("--seed", type=click.IntRange(0), default=1, show_default=True, help="Of the order of boots.")
@overrides_option
@html_option
@label_option
@store_option
@no_store_option
@click.option("--list", "only_list", is_flag=True, help="Only print what would be compared.")
@json_option
def compare(
    config: str,
    architectures: tuple[str, ...],
    routes: tuple[str, ...],
    waits: tuple[str, ...],
    everything: bool,
    rounds: int | None,
    seed: int,
    overrides: tuple[str, ...],
    html: Path | None,
    label: str,
    store: Path | None,
    no_store: bool,
    only_list: bool,
    as_json: bool,
) -> int:
    """Run a config's own guests under each architecture, and say what differs beyond noise.

    The machine is booted once a round in each variant, in an order that the seed shuffles. What each variant costs and
    whom it trusts is compared with the config as it stands. Without --routes and --waits each architecture is measured
    as the config has it otherwise, and the config's own one with the other route and other waits, too.

    \b
    Example:
      partvisor compare configs/compare.toml
      partvisor compare configs/compare.toml --architecture hosted,microkernel --html compare.html
      partvisor compare my.toml --routes direct,broker --waits spin,block --rounds 10
    """
    import signal

    from runtime.config.architecture import Architecture
    from runtime.config.loading import load
    from runtime.config.model import SignalRoute, WaitingKind
    from runtime.measure.compare_matrix import matrix, terms_of
    from runtime.measure.compare_run import ROUNDS, CompareOptions, machine_of

    machine = load(config, overrides)
    variants = matrix(
        machine,
        [Architecture(word) for word in architectures],
        [SignalRoute(word) for word in routes],
        [WaitingKind(word) for word in waits],
        everything,
    )
    if only_list:
        for variant in variants:
            found = machine_of(variant, machine, config, overrides)
            absent = f": not applicable: {found}" if isinstance(found, str) else ""
            print(terms_of(variant, machine).name + absent)
        return ExitCode.DONE
    options = CompareOptions(
        source=config,
        variants=variants,
        overrides=overrides,
        rounds=rounds or ROUNDS,
        seed=seed,
        label=label,
    )
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: the machine ends, files of ours go
    return _run(options, html, None if no_store else (store,), as_json)


def _run(options: CompareOptions, html: Path | None, keep: tuple[Path | None] | None, as_json: bool) -> int:
    """`keep`: None, or the store's file (None: the user's own)."""
    import contextlib
    import os

    from runtime.measure import compare_table as table
    from runtime.measure.compare_limit import limit_meter
    from runtime.measure.compare_run import compare as measure
    from runtime.measure.compare_run import statements
    from runtime.measure.conditions import read_conditions

    if html is not None and not html.absolute().parent.is_dir():  # before half a minute of measuring
        raise CommandError(f"{html}: there is no such folder; make it first")
    with limit_meter(_say) if keep is not None else contextlib.nullcontext() as measure_limit:
        conditions = read_conditions(sorted(os.sched_getaffinity(0)))
        result = measure(options, conditions, _say, measure_limit)
    said = statements(result)
    if keep is not None and measure_limit is not None:
        from runtime.measure.compare_store import to_run
        from runtime.measure.result_store import opened

        with opened(*keep) as results:
            results.save(to_run(result))
    if html is not None:
        from runtime.measure.compare_page import compare_page

        try:
            html.write_text(compare_page(result, said), "utf-8")
        except OSError as error:
            raise CommandError(f"{html}: {error.strerror}; name another file") from error
    if as_json:
        print_json(table.to_json(result, said))
    else:
        print_table(table.table_rows(result, said), "nothing was measured")
        print(f"\n{table.LEGEND}\n")
        print("\n".join([*table.sentences(result, said), *table.missing(result)]))
        print(f"\nrun {result.id}, seed {result.seed}, rounds {result.rounds}, {result.seconds:.0f} s")
    failed = any(entry.status == "failed" for entry in result.entries)
    return ExitCode.FAILED if failed else ExitCode.DONE


def _say(line: str) -> None:
    click.echo(line, err=True)
