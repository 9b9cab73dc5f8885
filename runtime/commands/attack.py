"""`partvisor attack`: a hostile guest beside working ones, against every service."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from runtime.commands.word_list import refuse_unknown
from runtime.exits import CommandError, ExitCode
from runtime.reports import print_json, print_table

if TYPE_CHECKING:
    from runtime.attack.findings import Report
    from runtime.attack.services import Service
    from runtime.config.architecture import Architecture
    from runtime.measure.paired_ratio import Interval

SECONDS: Final = 25.0
SECONDS_MAX: Final = 600.0
_EXIT_CODES = """\b
Exit codes:
  0    every attack was made, refused or contained, and no neighbour was certainly slowed
  1    a breach, an attack that could not be made, or a neighbour below 90 % of its pace
  2    the command line is wrong; nothing was started
  130  interrupted by Ctrl-C"""
LEGEND: Final = (
    "pace: the neighbours' exchanges a second while attacked, by that in the quiet window beside it: median of the"
    " pairs, and where it lies with 95 %; controls: the same of windows in which the hostile guest stands still, burns"
    " the share that it may have, or works honestly as fast as its cap lets it"
)


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
@click.option("--list", "only_list", is_flag=True, help="Only print what would be attacked.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def attack(
    services: tuple[str, ...],
    architectures: tuple[str, ...],
    attacks: tuple[str, ...],
    seconds: float,
    seed: int,
    only_list: bool,
    as_json: bool,
) -> int:
    """Attack every service from a hostile guest, beside neighbours that work and check every byte.

    Each attack has windows of its own, with a quiet one beside each. What it tries, and what a refusal looks like,
    stands in docs/hostile.md.

    \b
    Example:
      partvisor attack --service disk --architecture microkernelized
      partvisor attack --service hypervisor --seconds 60 --seed 7 --json
      partvisor attack --list
    """
    import signal

    chosen = _choose(services, architectures)
    _check_attacks(attacks, chosen)
    if only_list:
        _print_list(chosen, attacks, as_json)
        return ExitCode.DONE
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: the machine ends, files of ours go
    reports = _run(chosen, frozenset(attacks), seconds, seed)
    if as_json:
        print_json({"seed": seed, "reports": [report.to_json() for report in reports]})
    else:
        for report in reports:
            _print_report(report)
        print(f"\n{LEGEND}")
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
) -> list[Report]:
    import functools
    import tempfile

    from runtime.attack.running import AttackOptions
    from runtime.attack.running import attack as run

    reports = []
    options = AttackOptions(seconds=seconds, seed=seed, only=only)
    with tempfile.TemporaryDirectory(prefix="pv-attack-") as folder:
        for number, (service, architecture) in enumerate(chosen):
            if only and not only & {each.name for each in service.attacks(architecture)}:
                continue
            progress = functools.partial(_say_at, f"{number + 1} of {len(chosen)}, {architecture}: ")
            reports.append(run(service, architecture, options, Path(folder) / str(number), progress))
    if not reports:
        raise CommandError("nothing was attacked; see partvisor attack --list")
    return reports


def _pace(ratio: Interval | None) -> str:
    if ratio is None:
        return "-"
    from math import isfinite

    known = f" [{ratio.low:.2f} to {ratio.high:.2f}]" if isfinite(ratio.low) else ""
    return f"{ratio.value:.2f}{known}"


def _print_report(report: Report) -> None:
    from runtime.attack.findings import pace_word

    rows: list[dict[str, Any]] = [
        {
            "service": report.service,
            "attack": finding.attack.name,
            "made": finding.made,
            "refused_as": ", ".join(f"{name} {count}" for name, count in finding.outcomes.most_common(3)),
            "pace": _pace(finding.ratio),
            "verdict": str(finding.verdict),
        }
        for finding in report.findings
    ]
    print(f"\n{report.service}, {report.architecture}, seed {report.seed}, {report.seconds:.0f} s")
    print_table(rows, "nothing was attacked")
    for finding in report.findings:
        for text in [
            *finding.breaches,
            *(f"not foreseen: {each}" for each in finding.unexpected),
            *finding.errors,
        ]:
            print(f"  {finding.attack.name}: {text}")
    for breach in report.breaches:
        print(f"  BREACH: {breach}")
    word = "contained" if report.is_contained else "NOT CONTAINED"
    print(f"{word}; neighbours: {report.checked}; pace {_pace(report.ratio)}: {pace_word(report.ratio)}")
    controls = ", ".join(f"{each.name} {_pace(each.ratio)}" for each in report.controls)
    for error in sorted({error for each in report.controls for error in each.errors}):
        print(f"  control {error}")
    print(f"controls: {controls}; attacked by honest {_pace(report.ratio_beside_honest)}")


def _say_at(where: str, line: str) -> None:
    click.echo(where + line, err=True)
