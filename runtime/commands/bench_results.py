"""`partvisor bench show`, `compare` and `export`: results that were kept."""

from __future__ import annotations

import fnmatch
import os
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from runtime.commands.shared_options import html_option, json_option, store_option
from runtime.exits import CommandError, ExitCode
from runtime.reports import print_json, print_record, print_table

if TYPE_CHECKING:
    from runtime.measure.comparison import Comparison
    from runtime.measure.results import Row, Run
    from runtime.measure.thresholds import Finding

_PROGRESS_S: Final = 2.0
_NAMES_SHOWN_MAX: Final = 5

_rows_option = click.option(
    "--rows", metavar="GLOB", default="*", help="Only rows of such names: 'vmbus-*/64/*'."
)
_thresholds_option = click.option(
    "--thresholds",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="TOML with limits; exit code 1 when one is broken.",
)


@click.command()
@click.argument("run", default="latest")
@_rows_option
@click.option(
    "--baseline", metavar="TRANSPORT", help="Adds the ratio to this one's row under the same terms."
)
@_thresholds_option
@html_option
@click.option(
    "--svg",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Draw the chosen rows there: bars against the limit, of their smallest payload. For a README.",
)
@store_option
@json_option
def show(
    run: str,
    rows: str,
    baseline: str | None,
    thresholds: Path | None,
    html: Path | None,
    svg: Path | None,
    store: Path | None,
    as_json: bool,
) -> int:
    """Show a result: each row's percentiles, costs and ratios, then its conditions.

    RUN is an id, its beginning, "latest", "latest~1" (the one before), or a JSON file's path.

    \b
    Example:
      partvisor bench show
      partvisor bench show latest~1 --rows '*/64/*' --baseline pipe
      partvisor bench show 3f2a --html result.html
      partvisor bench show latest --rows '*/64/*' --svg ladder.svg
    """
    from runtime.measure.figures import table_row
    from runtime.measure.result_store import load_run
    from runtime.measure.results_page import run_page
    from runtime.measure.results_picture import picture
    from runtime.measure.thresholds import check, load_thresholds

    limits = load_thresholds(thresholds) if thresholds is not None else []
    found = load_run(run, store)
    chosen = _chosen(found, rows)
    if baseline is not None and all(row.transport != baseline for row in found.rows):
        known = ", ".join(dict.fromkeys(row.transport for row in found.rows))
        raise CommandError(f"run {found.id} has no transport {baseline}; it has {known}")
    findings = check(limits, found) if limits else []
    table = [table_row(found, row, baseline) for row in chosen]
    if html is not None:
        write_whole(html, run_page(found, baseline=baseline).encode())
    if svg is not None:
        write_whole(svg, picture(found, chosen).encode())
    if as_json:
        print_json(head_of(found) | {"rows": table, "thresholds": [each.to_json() for each in findings]})
    else:
        print_table([without_group(line) for line in table], "the run has no such row")
        print()
        print_record(head_of(found))
        _print_findings(findings)
    return _exit_code(findings)


@click.command()
@click.argument("first")
@click.argument("second")
@click.option(
    "--by",
    type=click.Choice(["time", "limit"]),
    default="time",
    help="Latencies, or latencies divided by the limit just before; default: time.",
)
@click.option(
    "--margin",
    type=click.FloatRange(0, 1000),
    metavar="PERCENT",
    help="Smaller differences do not count; default: 2.",
)
@click.option("--seed", default="1", help="Of the draws; the same seed gives the same verdicts.")
@click.option("--all", "everything", is_flag=True, help="Print rows without a difference, too.")
@click.option("--force", is_flag=True, help="Compare even though the conditions differ.")
@_thresholds_option
@html_option
@store_option
@json_option
def compare(
    first: str,
    second: str,
    by: str,
    margin: float | None,
    seed: str,
    everything: bool,
    force: bool,
    thresholds: Path | None,
    html: Path | None,
    store: Path | None,
    as_json: bool,
) -> int:
    """Say in which rows SECOND is faster or slower than FIRST, beyond noise.

    Rounds are drawn anew many times, then values within them; a ratio has a 95 % interval, and verdicts allow for the
    number of rows. Runs whose conditions differ are not compared. Names are those of `partvisor bench show`.

    \b
    Example:
      partvisor bench compare latest~1 latest
      partvisor bench compare base.json latest --thresholds ci.toml
    """
    from runtime.measure.comparison import MARGIN_DEFAULT, Scale, compare_runs
    from runtime.measure.result_store import load_run
    from runtime.measure.results_page import run_page
    from runtime.measure.thresholds import check, load_thresholds

    limits = load_thresholds(thresholds) if thresholds is not None else []
    old, new = load_run(first, store), load_run(second, store)
    found = compare_runs(
        old,
        new,
        scale=Scale(by),
        margin=MARGIN_DEFAULT if margin is None else margin / 100,
        seed=seed,
        force=force,
        progress=_progress(),
    )
    findings = check(limits, new, old) if limits else []
    if html is not None:
        write_whole(html, run_page(new, found).encode())
    if as_json:
        print_json(found.to_json() | {"thresholds": [each.to_json() for each in findings]})
    else:
        _print_comparison(found, everything)
        _print_findings(findings)
    return _exit_code(findings)


@click.command()
@click.argument("run", default="latest")
@_rows_option
@click.option(
    "--hgrm",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="A file a row, in HdrHistogram's table of percentiles.",
)
@click.option(
    "--hlog",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="HdrHistogram's log: a line a round, tagged with the row.",
)
@click.option(
    "--document",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="All of the run, as JSON; it can be read again.",
)
@store_option
def export(
    run: str, rows: str, hgrm: Path | None, hlog: Path | None, document: Path | None, store: Path | None
) -> int:
    """Write a result to files of other formats.

    RUN is an id, its beginning, "latest", "latest~1" (the one before), or a JSON file's path.

    \b
    Example:
      partvisor bench export latest --hlog ladder.hlog
      partvisor bench export 3f2a --hgrm percentiles --rows '*/64/*'
      partvisor bench export latest --document base.json
    """
    from runtime.measure import hdr_format
    from runtime.measure.result_store import load_run
    from runtime.measure.results import Status, encode_run

    if hgrm is None and hlog is None and document is None:
        raise click.UsageError("say what to write: --hgrm FOLDER, --hlog FILE or --document FILE")
    found = load_run(run, store)
    chosen = [row for row in _chosen(found, rows) if row.status is Status.OK]
    if not chosen and document is None:
        raise CommandError(
            f"run {found.id} has no measured row of such a name; see: partvisor bench show {found.id}"
        )
    if hgrm is not None:
        for row in chosen:
            write_whole(hgrm / f"{row.name.replace('/', '_')}.hgrm", hdr_format.hgrm(row.latency).encode())
        click.echo(f"{len(chosen)} files in {hgrm}", err=True)
    if hlog is not None:
        write_whole(hlog, hdr_format.hlog(found, chosen).encode())
    if document is not None:
        write_whole(document, encode_run(found) + b"\n")
    return ExitCode.DONE


def _chosen(run: Run, pattern: str) -> list[Row]:
    return [row for row in run.rows if fnmatch.fnmatchcase(row.name, pattern)]


def head_of(run: Run) -> dict[str, Any]:
    from msgspec import to_builtins

    return {
        "run": run.id,
        "bench": run.bench,
        "label": run.label,
        "started": when(run.started_unix_ns),
        "revision": run.revision,
        "versions": run.versions,
        "conditions": to_builtins(run.conditions),
    }


def when(unix_ns: int) -> str:
    return datetime.fromtimestamp(unix_ns / 1e9, UTC).strftime("%Y-%m-%d %H:%M:%SZ")


def without_group(line: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in line.items() if key != "group"}


def _print_comparison(found: Comparison, everything: bool) -> None:
    from runtime.drawing.scales import duration, three_digits

    text = duration if found.scale == "time" else three_digits
    rows = [
        {
            "row": figure.row,
            "percentile": f"p{figure.percent:g}",
            "first": None if figure.difference is None else text(figure.difference.first),
            "second": None if figure.difference is None else text(figure.difference.second),
            "ratio": None if figure.difference is None else f"{figure.difference.ratio:.3f}",
            "interval": None
            if figure.difference is None
            else f"{figure.difference.low:.3f} to {figure.difference.high:.3f}",
            "verdict": figure.verdict.value,
        }
        for figure in found.figures
        if everything or figure.verdict in ("faster", "slower")
    ]
    print_table(rows, "no row is faster or slower beyond noise")
    unit = "latency" if found.scale == "time" else "times the limit just before"
    print(f"\n{found.second.id} against {found.first.id}: {found.summary} (rows and percentiles)")
    print(f"{unit}; a ratio above 1 is slower")
    for names, run in ((found.only_first, found.first), (found.only_second, found.second)):
        if names:
            more = ", ..." if len(names) > _NAMES_SHOWN_MAX else ""
            print(f"measured in {run.id} alone: {len(names)}: {', '.join(names[:_NAMES_SHOWN_MAX])}{more}")
    for name, (one, two) in found.differing.items():
        print(f"conditions differ: {name}: {one} and {two}")
    if found.limit_shifted:
        low, high = found.limits_ns
        print(
            f"the limit itself was {low:.0f} ns, then {high:.0f} ns: the CPUs stand differently; look at --by limit"
        )


def _print_findings(findings: list[Finding]) -> None:
    if findings:
        print("\nthresholds:")
        print_table([each.to_json() for each in findings], "none")


def _exit_code(findings: list[Finding]) -> ExitCode:
    from runtime.measure.thresholds import FAILING

    return ExitCode.FAILED if any(each.outcome in FAILING for each in findings) else ExitCode.DONE


def write_whole(path: Path, data: bytes) -> None:
    """All of it or nothing: a reader never meets half a file."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside.write_bytes(data)
        beside.replace(path)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise CommandError(f"cannot write {path}: {error.strerror}; name another file") from error


def _progress() -> Callable[[int, int], None]:
    """A line on standard error every two seconds."""
    following = time.monotonic() + _PROGRESS_S

    def progress(done: int, of: int) -> None:
        nonlocal following
        if time.monotonic() >= following:
            following = time.monotonic() + _PROGRESS_S
            click.echo(f"{done} of {of} rows compared", err=True)

    return progress
