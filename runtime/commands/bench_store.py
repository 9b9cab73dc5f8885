"""`partvisor bench list`, `delete` and `pin`: which results are kept."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import Final

import click

from runtime.commands.bench_results import when
from runtime.commands.shared_options import json_option, store_option
from runtime.exits import ExitCode
from runtime.reports import print_json, print_table

_DAY_NS: Final = 24 * 3600 * 1_000_000_000


@click.command("list")
@store_option
@json_option
def list_(store: Path | None, as_json: bool) -> int:
    """List the results that were kept, newest first.

    \b
    Example:
      partvisor bench list
    """
    from runtime.measure.result_store import opened

    with opened(store) as results:
        runs = results.list_runs()
    if as_json:
        print_json([asdict(run) for run in runs])
        return ExitCode.DONE
    rows = [
        {
            "run": run.id,
            "bench": run.bench,
            "started": when(run.started_unix_ns),
            "revision": run.revision,
            "rows": f"{run.rows_ok} of {run.rows_all}",
            "size_bytes": run.document_bytes,
            "pinned": run.pinned,
            "label": run.label,
        }
        for run in runs
    ]
    print_table(rows, "no results are kept here; measure some: partvisor bench ladder --quick")
    return ExitCode.DONE


@click.command()
@click.argument("runs", nargs=-1)
@click.option("--keep", type=click.IntRange(0), metavar="N", help="Instead: all but the newest N.")
@click.option("--older-than", type=click.IntRange(0), metavar="DAYS", help="Instead: all that are older.")
@store_option
@json_option
def delete(
    runs: tuple[str, ...], keep: int | None, older_than: int | None, store: Path | None, as_json: bool
) -> int:
    """Delete kept results, by name or by age. Those that are pinned go by name only.

    \b
    Example:
      partvisor bench delete 3f2a latest
      partvisor bench delete --keep 50
      partvisor bench delete --older-than 90
    """
    from runtime.measure.result_store import opened

    if (keep is not None) + (older_than is not None) + bool(runs) != 1:
        raise click.UsageError("name runs to delete, or how many to keep: --keep N, or --older-than DAYS")
    with opened(store) as results:
        ids = [results.find(name) for name in runs]  # all of them, before the first goes
        if runs:
            deleted = results.delete(ids)
        else:
            before = None if older_than is None else time.time_ns() - older_than * _DAY_NS
            deleted = results.prune(keep=keep, before_unix_ns=before)
    print_json({"deleted": deleted}) if as_json else print(f"{deleted} deleted")
    return ExitCode.DONE


@click.command()
@click.argument("runs", nargs=-1, required=True)
@click.option("--off", is_flag=True, help="Let them go like the others again.")
@store_option
@json_option
def pin(runs: tuple[str, ...], off: bool, store: Path | None, as_json: bool) -> int:
    """Keep results for good: a full store makes room by the oldest that are not pinned.

    \b
    Example:
      partvisor bench pin latest
      partvisor bench pin --off 3f2a
    """
    from runtime.measure.result_store import opened

    with opened(store) as results:
        ids = [results.find(name) for name in runs]
        results.pin(ids, pinned=not off)
    told = "unpinned" if off else "pinned"
    print_json({told: ids}) if as_json else print(f"{told}: {', '.join(ids)}")
    return ExitCode.DONE
