"""`partvisor chaos`: experiments that break machines, judge what their guests saw, and shrink what failed."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from runtime.commands.chaos_printing import (
    EXIT_INCONCLUSIVE,
    Progress,
    conclude,
    exit_code,
    print_plans,
    print_schedule,
    print_summary,
    print_trial,
    summary,
    tell,
    tell_shrinking,
    worst_of,
)
from runtime.commands.chaos_simulated import Speed, check_planted
from runtime.commands.shared_options import json_option
from runtime.exits import CommandError, ExitCode
from runtime.reports import print_json, print_table

if TYPE_CHECKING:
    from runtime.chaos.experiment.campaign import Campaign
    from runtime.chaos.experiment.journal import Header, Outcome, Trial
    from runtime.chaos.experiment.schedule import Schedule
    from runtime.chaos.experiment.workers import Workers

TRIALS_MAX: Final = 1_000_000
_EXIT_CODES = """\b
Exit codes:
  0    passed: every fault fired, every check is content
  1    violated: a check found something, or a threshold is broken
  2    the command line or the experiment is wrong; nothing was started
  3    inconclusive: a fault did not fire, the load did not run, or this host lacks something
  130  interrupted by Ctrl-C"""

_file = click.Path(dir_okay=False, path_type=Path)  # that it is there is said by who reads it
_writable = click.Path(dir_okay=False, writable=True, path_type=Path)
_DASK: Final = "dask://"


@click.group(epilog=_EXIT_CODES)
def chaos() -> None:
    """Break machines by experiment: any fault, any time, replayed from one file.

    \b
    Example:
      partvisor chaos run configs/chaos/root-kill.toml --trials 20
    """


@chaos.command()
@click.argument("file", type=_file)
@json_option
def validate(file: Path, as_json: bool) -> int:
    """Name every mistake of an experiment, its line, and what is allowed.

    \b
    Example:
      partvisor chaos validate configs/chaos/root-kill.toml
    """
    from runtime.chaos.experiment.loading import load_experiment

    experiment, _ = load_experiment(file)
    if as_json:
        print_json({"valid": True, "name": experiment.name, "faults": len(experiment.faults)})
    else:
        print(f"{file}: valid: {experiment.name}, faults: {len(experiment.faults)}")
    return ExitCode.DONE


@chaos.command()
@json_option
def checks(as_json: bool) -> int:
    """List the checks that an experiment can ask for.

    \b
    Example:
      partvisor chaos checks
    """
    from runtime.chaos.experiment.checks.check import CHECKS

    rows = [
        {
            "check": check.name,
            "decides": check.meaning,
            "parameters": " ".join(f"{one.name}={one.default}" for one in check.parameters) or "-",
        }
        for check in CHECKS.values()
    ]
    if as_json:
        print_json({"checks": rows})
    else:
        print_table(rows, "there are none")
    return ExitCode.DONE


@chaos.command()
@click.argument("file", type=_file)
@click.option("--trials", type=click.IntRange(1, TRIALS_MAX), default=10, show_default=True)
@click.option("--seed", type=click.IntRange(0), default=1, show_default=True, help="Of the first trial.")
@click.option(
    "--jobs", type=click.IntRange(1, 64), default=1, show_default=True, help="Trials at a time, here."
)
@click.option(
    "--workers", metavar="dask://HOST:PORT", help="A scheduler of Dask, whose workers perform them."
)
@click.option("--journal", type=_writable, help="Left out: NAME-SEED.jsonl here.")
@click.option("--html", type=_writable, help="Write one offline page with pictures.")
@click.option("--junit", type=_writable, help="Write JUnit XML.")
@click.option("--keep", type=click.Path(path_type=Path), help="A folder for the files of each trial.")
@click.option("--dry", is_flag=True, help="Print what each trial would do; start nothing.")
@click.option("--simulated", is_flag=True, help="In the deterministic mode: virtual time, no processes.")
@click.option("--planted", default="", metavar="NAME", help="With a defect on purpose; --simulated only.")
@json_option
def run(
    file: Path,
    trials: int,
    seed: int,
    jobs: int,
    workers: str | None,
    journal: Path | None,
    html: Path | None,
    junit: Path | None,
    keep: Path | None,
    dry: bool,
    simulated: bool,
    planted: str,
    as_json: bool,
) -> int:
    """Run the trials of an experiment, each with a seed of its own, and judge them.

    \b
    Example:
      partvisor chaos run configs/chaos/root-kill.toml --trials 100 --seed 7 --html root-kill.html
    """
    from runtime.chaos.experiment.campaign import Campaign
    from runtime.chaos.experiment.loading import load_experiment

    experiment, tables = load_experiment(file)
    check_planted(planted, simulated)
    campaign = Campaign(experiment, tables, file, trials, seed, keep, simulated, planted)
    if dry:
        print_plans(campaign, as_json)
        return ExitCode.DONE
    journal = journal or Path(f"{experiment.name}-{seed}.jsonl")
    speed = Speed(workers or (f"{jobs} processes together" if jobs > 1 else "")) if simulated else None
    done, cut_short = _perform(campaign, _workers(workers, jobs), journal)
    if speed is not None:
        speed.tell(done)
    _write_reports(campaign.header, done, html, junit)
    code = conclude(done, campaign, journal, as_json, speed.figures(done) if speed is not None else None)
    if cut_short is None or code == ExitCode.FAILED:
        return code
    return cut_short


@chaos.command()
@click.argument("journal", type=_file)
@click.option("--trial", type=click.IntRange(1), help="Left out: the first that was not green.")
@click.option("--times", type=click.IntRange(1, 1000), default=1, show_default=True)
@json_option
def replay(journal: Path, trial: int | None, times: int, as_json: bool) -> int:
    """Do again what one trial of a journal did.

    \b
    Example:
      partvisor chaos replay root-kill-7.jsonl --trial 12
    """
    header, one = _trial_of(journal, trial)
    again: list[Trial] = []
    for number in range(times):
        tell(f"trial {one.number} again: {number} of {times} done")
        again.append(_again(header, one, one.schedule))
    tell(None)
    worst = worst_of(again)
    if as_json:
        print_json({"trials": [done.to_table() for done in again], "outcome": worst.value})
    else:
        for done in again:
            print_trial(done)
    return exit_code(worst)


@chaos.command()
@click.argument("journal", type=_file)
@click.option("--trial", type=click.IntRange(1), help="Left out: the first that was violated.")
@click.option("--tries", type=click.IntRange(1, 100), default=3, show_default=True, help="Of each candidate.")
@click.option("--runs", type=click.IntRange(1, 10_000), default=200, show_default=True, help="At most.")
@click.option("--out", type=click.Path(path_type=Path), help="Left out: JOURNAL with .shrunk.jsonl.")
@json_option
def shrink(journal: Path, trial: int | None, tries: int, runs: int, out: Path | None, as_json: bool) -> int:
    """Leave out of a violated trial whatever it does not need to fail; write a journal that replays.

    \b
    Example:
      partvisor chaos shrink root-kill-7.jsonl
    """
    import json
    from dataclasses import replace as replaced

    from runtime.chaos.experiment.journal import Outcome
    from runtime.chaos.experiment.shrinking import Shrinker

    header, one = _trial_of(journal, trial, Outcome.VIOLATED)
    broken = {finding.check for finding in one.findings if finding.outcome is Outcome.VIOLATED}
    last: list[Trial] = []

    def fails(schedule: Schedule) -> bool:
        done = _again(header, one, schedule)
        failed = any(
            finding.check in broken and finding.outcome is Outcome.VIOLATED for finding in done.findings
        )
        if failed:
            last[:] = [done]
        return failed

    if header.simulated:
        tries = 1  # it does the same every time
    shrunk = Shrinker(fails, tries=tries, runs_max=runs, progress=tell_shrinking).shrink(one.schedule)
    if sys.stderr.isatty():
        print(file=sys.stderr)
    if shrunk is None:
        raise CommandError(f"trial {one.number} did not fail again in {tries} tries; try more: --tries")
    out = out or journal.with_suffix(".shrunk.jsonl")
    out.write_text(
        json.dumps(replaced(header, trials=1).to_table()) + "\n" + json.dumps(last[0].to_table()) + "\n"
    )
    if as_json:
        print_json(
            {
                "journal": str(out),
                "faults": len(shrunk.schedule),
                "before": len(one.schedule),
                "runs": shrunk.runs,
                "failed": shrunk.failed,
                "tried": shrunk.tried,
                "schedule": [injection.to_table() for injection in shrunk.schedule],
            }
        )
    else:
        print(
            f"{len(one.schedule)} faults shrunk to {len(shrunk.schedule)} in {shrunk.runs} trials; what is left"
            f" failed {shrunk.failed} of {shrunk.tried} times"
        )
        print_schedule(shrunk.schedule)
        print(f"partvisor chaos replay {out}")
    return ExitCode.DONE


@chaos.command()
@click.argument("journal", type=_file)
@click.option("--html", type=_writable, help="Write one offline page with pictures.")
@click.option("--junit", type=_writable, help="Write JUnit XML.")
@click.option("--shrunk", type=_file, help="With the page: the journal that `shrink` wrote of this one.")
@json_option
def report(journal: Path, html: Path | None, junit: Path | None, shrunk: Path | None, as_json: bool) -> int:
    """Print what a journal says: what became of each fault, what each check found.

    \b
    Example:
      partvisor chaos report root-kill-7.jsonl --html root-kill.html --junit root-kill.xml
    """
    from runtime.chaos.experiment.campaign import broken, statistics, thresholds_of, verdict
    from runtime.chaos.experiment.journal import read_journal

    header, trials = read_journal(journal)
    thresholds = thresholds_of(header)
    worst = verdict(trials, thresholds)
    _write_reports(header, trials, html, junit, read_journal(shrunk)[1] if shrunk else [])
    complaints = broken(thresholds, statistics(trials))
    if as_json:
        print_json(summary(trials, header, worst) | {"broken": complaints})
    else:
        print_summary(trials, complaints, header.left_out)
        if len(trials) < header.trials:
            print(
                f"{len(trials)} trials, where {header.count} were wanted: the campaign did not end by itself"
            )
        print(worst.value)
    return exit_code(worst)


# -- performing


def _workers(address: str | None, jobs: int) -> Workers:
    if address is None:
        from runtime.chaos.experiment.workers import LocalWorkers

        return LocalWorkers(jobs)
    if not address.startswith(_DASK):
        raise click.UsageError(
            f"--workers {address}: want {_DASK}HOST:PORT, where a scheduler of Dask listens"
        )
    from runtime.chaos.experiment.dask_workers import DaskWorkers

    return DaskWorkers(address.removeprefix(_DASK))


def _perform(campaign: Campaign, workers: Workers, journal: Path) -> tuple[list[Trial], int | None]:
    """What was done; and the exit code, if Ctrl-C ended it, or its workers are gone. The journal has what was done."""
    from runtime.chaos.experiment.campaign import run_campaign
    from runtime.chaos.experiment.workers import WorkersLost

    progress, cut_short, why = Progress(campaign.count), None, ""
    try:
        for trial in run_campaign(campaign, workers, journal):
            progress.done(trial)
    except KeyboardInterrupt:
        cut_short, why = int(ExitCode.INTERRUPTED), "interrupted"
    except WorkersLost as error:
        cut_short, why = EXIT_INCONCLUSIVE, str(error)
    tell(None)
    if cut_short is not None:
        print(f"{why}: {len(progress.trials)} of {campaign.count} trials were done", file=sys.stderr)
    return progress.trials, cut_short


def _write_reports(
    header: Header,
    trials: list[Trial],
    html: Path | None,
    junit: Path | None,
    shrunk: list[Trial] | None = None,
) -> None:
    from runtime.chaos.experiment.reports.junit import junit_xml
    from runtime.chaos.experiment.reports.page import campaign_page

    try:
        if html is not None:
            html.write_text(campaign_page(header, trials, shrunk or ()), "utf-8")
        if junit is not None:
            junit.write_text(junit_xml(header, trials), "utf-8")
    except OSError as error:
        raise CommandError(f"{error.filename}: {error.strerror}") from None


def _again(header: Header, one: Trial, schedule: Schedule) -> Trial:
    from runtime.chaos.experiment.performing import perform_task, task_of

    return perform_task(task_of(header, one, schedule))


def _trial_of(journal: Path, number: int | None, wanted: Outcome | None = None) -> tuple[Header, Trial]:
    from runtime.chaos.experiment.journal import Outcome, read_journal

    header, trials = read_journal(journal)
    if number is not None:
        found = [trial for trial in trials if trial.number == number]
        if not found:
            raise click.UsageError(f"{journal} has no trial {number}; it has {len(trials)}")
        return header, found[0]
    outcomes = (wanted,) if wanted else (Outcome.VIOLATED, Outcome.INCONCLUSIVE)
    for outcome in outcomes:
        for trial in trials:
            if trial.outcome is outcome:
                return header, trial
    raise click.UsageError(
        f"{journal}: no trial of {len(trials)} was {' or '.join(outcomes)}; name one: --trial"
    )
