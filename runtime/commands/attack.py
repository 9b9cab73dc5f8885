"""`partvisor attack`: a hostile guest beside working ones, against every service."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Final, TextIO

import click

from runtime.commands.attack_printing import print_end, print_report
from runtime.commands.shared_options import json_option
from runtime.commands.word_list import refuse_unknown
from runtime.exits import CommandError, ExitCode
from runtime.reports import print_json, print_table

if TYPE_CHECKING:
    from collections.abc import Iterator

    from runtime.attack.findings import Report
    from runtime.attack.services import Service
    from runtime.config.architecture import Architecture

SECONDS: Final = 25.0
SECONDS_MAX: Final = 600.0
_EXIT_CODES = """\b
Exit codes:
  0    every attack was made, refused or contained, and no neighbour was certainly slowed
  1    a breach, an attack that could not be made, a neighbour below 90 % of its pace, or a pair that failed
  2    the command line is wrong; nothing was started
  130  interrupted by Ctrl-C"""


@click.command(epilog=_EXIT_CODES)
@click.option(
    "--service", "services", multiple=True, metavar="S", help="Only this; may be given several times."
)
@click.option("--architecture", "architectures", multiple=True, metavar="A", help="Only under this one.")
@click.option("--attack", "attacks", multiple=True, metavar="NAME", help="Only this attack.")
@click.option(
    "--seconds",
    type=click.FloatRange(0.5, SECONDS_MAX),
    default=SECONDS,
    show_default=True,
    help="Of each service under each architecture.",
)
@click.option(
    "--seed", type=click.IntRange(0), default=1, show_default=True, help="Of what is attacked, and when."
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Write each result there, too, as soon as it is there: a line of JSON each.",
)
@click.option("--list", "only_list", is_flag=True, help="Only print what would be attacked.")
@json_option
def attack(
    services: tuple[str, ...],
    architectures: tuple[str, ...],
    attacks: tuple[str, ...],
    seconds: float,
    seed: int,
    out: Path | None,
    only_list: bool,
    as_json: bool,
) -> int:
    """Attack every service from a hostile guest, beside neighbours that work and check every byte.

    Each attack has windows of its own, with a quiet one beside each. What it tries, and what a refusal looks like,
    stands in docs/hostile.md. A result is printed as soon as it is there, or with --json at the end; Ctrl-C loses none.

    \b
    Example:
      partvisor attack --service disk --architecture microkernelized
      partvisor attack --service hypervisor --seconds 60 --seed 7 --json
      partvisor attack --out attacks.jsonl
      partvisor attack --list
    """
    import signal

    chosen = _choose(services, architectures)
    _check_attacks(attacks, chosen)
    if only_list:
        _print_list(chosen, attacks, as_json)
        return ExitCode.DONE
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: the machine ends, files of ours go
    kept = _open(out)  # before minutes of attacks
    reports: list[Report] = []
    interrupted = True
    try:
        for report in _run(chosen, frozenset(attacks), seconds, seed):
            reports.append(report)
            if kept is not None:
                _keep(report, kept)
            if not as_json:
                print_report(report)
        interrupted = False
    finally:
        if kept is not None:
            kept.close()
        if as_json and (reports or not interrupted):
            rows = [report.to_json() for report in reports]
            print_json({"seed": seed, "interrupted": interrupted, "reports": rows})
        elif reports:
            print_end(reports)
    return ExitCode.DONE if all(report.is_contained for report in reports) else ExitCode.FAILED


def _choose(services: tuple[str, ...], architectures: tuple[str, ...]) -> list[tuple[Service, Architecture]]:
    from runtime.attack.services import SERVICES
    from runtime.config.architecture import Architecture

    refuse_unknown("--service", services, [service.name for service in SERVICES])
    refuse_unknown("--architecture", architectures, [str(each) for each in Architecture])
    chosen = [
        (service, architecture)
        for service in SERVICES
        if not services or service.name in services
        for architecture in service.architectures
        if not architectures or architecture in architectures
    ]
    if not chosen:
        raise click.UsageError(
            "that service is not there under that architecture; see partvisor attack --list"
        )
    return chosen


def _check_attacks(attacks: tuple[str, ...], chosen: list[tuple[Service, Architecture]]) -> None:
    names = {each.name for service, architecture in chosen for each in service.attacks(architecture)}
    refuse_unknown("--attack", attacks, sorted(names))


def _print_list(chosen: list[tuple[Service, Architecture]], attacks: tuple[str, ...], as_json: bool) -> None:
    rows = [
        {
            "service": service.name,
            "architecture": str(architecture),
            "attack": each.name,
            "tries": each.tries,
        }
        for service, architecture in chosen
        for each in service.attacks(architecture)
        if not attacks or each.name in attacks
    ]
    if as_json:
        print_json(rows)
    else:
        print_table(rows, "nothing would be attacked")


def _run(
    chosen: list[tuple[Service, Architecture]], only: frozenset[str], seconds: float, seed: int
) -> Iterator[Report]:
    import functools
    import tempfile

    from runtime.attack.running import AttackOptions
    from runtime.attack.running import attack as run

    options = AttackOptions(seconds=seconds, seed=seed, only=only)
    pairs = [
        (service, architecture)
        for service, architecture in chosen
        if not only or only & {each.name for each in service.attacks(architecture)}
    ]
    with tempfile.TemporaryDirectory(prefix="pv-attack-") as folder:
        for number, (service, architecture) in enumerate(pairs, 1):
            progress = functools.partial(_say_at, f"{number} of {len(pairs)}, {architecture}: ")
            yield run(service, architecture, options, Path(folder) / str(number), progress)


def _open(out: Path | None) -> TextIO | None:
    if out is None:
        return None
    try:
        return out.open("w", encoding="utf-8")
    except OSError as error:
        raise CommandError(f"{out}: {error.strerror}; name another file") from error


def _keep(report: Report, kept: TextIO) -> None:
    """What cannot be written there is still printed."""
    try:
        print(json.dumps(report.to_json(), ensure_ascii=False), file=kept, flush=True)
    except OSError as error:
        click.echo(f"{kept.name}: {error.strerror}; that result is not in it", err=True)


def _say_at(where: str, line: str) -> None:
    click.echo(where + line, err=True)
