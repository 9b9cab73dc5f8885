"""`partvisor bench ladder` and `partvisor bench goals`."""

import signal
from pathlib import Path

import click

from runtime.commands.cpu_pair import cpu_pair
from runtime.commands.shared_options import (
    html_option,
    json_option,
    label_option,
    no_store_option,
    store_option,
)
from runtime.exits import CommandError, ExitCode
from runtime.reports import print_json, print_record, print_table

_ALL = "all"
_PLACEMENTS = ("same-cpu", "two-cpus", "unpinned")
_ROUNDS_MAX = 1000
_SECONDS_MAX = 60.0
_RATE_MAX = 10_000_000.0


def _numbers(text: str, what: str, low: float, high: float) -> tuple[float, ...]:
    """ "1000,2000" as numbers. UsageError: they are none, or out of bounds."""
    try:
        found = tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise click.UsageError(f"{what} {text}: numbers are needed, such as {low:g},{2 * low:g}") from error
    if bad := [number for number in found if not low <= number <= high]:
        raise click.UsageError(f"{what} {bad[0]:g}: from {low:g} to {high:g}")
    return tuple(dict.fromkeys(found))


def _rates(context: click.Context, parameter: click.Parameter, text: str | None) -> tuple[float, ...]:
    return () if text is None else _numbers(text, "--rate", 1, _RATE_MAX)


def _payloads(context: click.Context, parameter: click.Parameter, text: str) -> tuple[int, ...]:
    from runtime.measure.exchanges import PAYLOAD_BYTES_MAX, PAYLOAD_BYTES_MIN

    found = _numbers(text, "--payload", PAYLOAD_BYTES_MIN, PAYLOAD_BYTES_MAX)
    if bad := [number for number in found if number % 8]:
        raise click.UsageError(f"--payload {bad[0]:g}: a multiple of 8 is needed")
    return tuple(int(number) for number in found)


def _end_in_order() -> None:
    """SIGTERM as Ctrl-C: what was started ends, and files of ours are removed."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)


_cpus_option = click.option(
    "--cpus",
    metavar="A,B",
    callback=cpu_pair,
    help="The CPUs of client and server; default: the first two allowed.",
)
_quick_option = click.option(
    "--quick", is_flag=True, help="One short round: for a look, not for a comparison."
)


@click.command("ladder")
@click.option(
    "--only",
    metavar="GLOB",
    multiple=True,
    help="Only such rows, by transport or by the whole name: 'vmbus-*', '*/64/spin/*'. May be given several times.",
)
@click.option(
    "--payload",
    metavar="N[,N...]",
    default="64,4096,65536",
    show_default=True,
    callback=_payloads,
    help="Bytes of request and reply.",
)
@click.option(
    "--placement",
    type=click.Choice([*_PLACEMENTS, _ALL]),
    default="two-cpus",
    show_default=True,
    help="Both sides on one CPU, on one each, or wherever the kernel puts them.",
)
@click.option(
    "--rate",
    metavar="N[,N...]",
    callback=_rates,
    help="Open loop: so many requests a second, each at its own time; one row for each rate.",
)
@click.option(
    "--awake", is_flag=True, help="Keep idle CPUs from halting, by a spinner of lowest priority on each."
)
@click.option("--baseline", metavar="NAME", help="Add the ratio to this transport's row.")
@click.option(
    "--transport",
    "transports",
    metavar="MODULE:CLASS",
    multiple=True,
    help="Add a transport of your own. May be given several times.",
)
@click.option("--rounds", type=click.IntRange(1, _ROUNDS_MAX), help="Default: 5.")
@click.option("--seconds", type=click.FloatRange(0.001, _SECONDS_MAX), help="Of each sample; default: 0.1.")
@click.option(
    "--hops/--no-hops",
    default=None,
    help="Where an exchange's time goes, from a traced machine at the end; default: not with --quick.",
)
@label_option
@store_option
@html_option
@no_store_option
@click.option("--list", "only_list", is_flag=True, help="Only print which rows there are.")
@_cpus_option
@_quick_option
@json_option
def ladder(
    only: tuple[str, ...],
    payload: tuple[int, ...],
    placement: str,
    rate: tuple[float, ...],
    awake: bool,
    baseline: str | None,
    transports: tuple[str, ...],
    rounds: int | None,
    seconds: float | None,
    hops: bool | None,
    label: str,
    store: Path | None,
    html: Path | None,
    no_store: bool,
    only_list: bool,
    cpus: tuple[int, int] | None,
    quick: bool,
    as_json: bool,
) -> int:
    """Measure one request and its reply over every way for two processes to talk, ours among them.

    Rounds are interleaved, and each sample stands beside the limit measured just before it: two C processes that hand
    each other a slot of shared memory. The result is kept: see partvisor bench list, show and compare.

    \b
    Example:
      partvisor bench ladder --quick
      partvisor bench ladder --only 'vmbus-*' --only pipe --baseline pipe
      partvisor bench ladder --payload 64 --placement all --rate 1000,10000
      partvisor bench ladder --transport my_module:MyTransport --payload 64
    """
    from runtime.commands.bench_results import head_of, without_group, write_whole
    from runtime.measure.bench_ladder import (
        QUICK_ROUNDS,
        QUICK_SECONDS,
        ROUNDS,
        SECONDS,
        LadderOptions,
        measure,
        row_names,
        say,
    )
    from runtime.measure.figures import table_row
    from runtime.measure.measured_cpus import two_cpus
    from runtime.measure.results import Placement
    from runtime.measure.results_page import run_page
    from runtime.measure.transport import load_transport

    places = tuple(Placement) if placement == _ALL else (Placement(placement),)
    options = LadderOptions(
        cpus=cpus or two_cpus(),
        payloads=payload,
        placements=places,
        rates_per_s=rate,
        only=only,
        awake=awake,
        rounds=rounds or (QUICK_ROUNDS if quick else ROUNDS),
        seconds=seconds or (QUICK_SECONDS if quick else SECONDS),
        transports=[load_transport(text) for text in transports],
        label=label,
        hops=not quick if hops is None else hops,
    )
    _end_in_order()
    names = row_names(options)
    if baseline is not None and all(name.partition("/")[0] != baseline for name in names):
        known = ", ".join(dict.fromkeys(name.partition("/")[0] for name in names))
        raise CommandError(f"--baseline {baseline}: this run has {known}")
    if only_list:
        print("\n".join(names))
        return ExitCode.DONE
    run = measure(options, say)
    if not no_store:
        from runtime.measure.result_store import opened

        with opened(store) as results:
            for gone in results.save(run):
                say(
                    f"run {gone.id} was the oldest and made room; to keep one for good: partvisor bench pin RUN"
                )
    if html is not None:
        write_whole(html, run_page(run, baseline=baseline).encode())
    table = [table_row(run, row, baseline) for row in run.rows]
    if as_json:
        print_json(head_of(run) | {"rows": table})
    else:
        print_table([without_group(line) for line in table], "nothing was measured")
        print()
        print_record(head_of(run))
    failed = any(line["status"] == "failed" for line in table)
    return ExitCode.FAILED if failed else ExitCode.DONE


@click.command("goals")
@_cpus_option
@_quick_option
@json_option
def goals(cpus: tuple[int, int] | None, quick: bool, as_json: bool) -> int:
    """Measure every speed that was promised beside its reference; exit code 1 when one is missed.

    All of them are ratios within a round: no figure in microseconds is a goal.

    \b
    Example:
      partvisor bench goals
    """
    from runtime.measure import bench_goals

    _end_in_order()
    return bench_goals.run(cpus=cpus, quick=quick, as_json=as_json)
