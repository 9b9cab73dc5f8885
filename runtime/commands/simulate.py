"""`partvisor simulate`: the hypervisor's state machine under a virtual clock, with seeded schedules and faults."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from runtime.commands.shared_options import json_option
from runtime.exits import ExitCode
from runtime.reports import print_json, print_record

if TYPE_CHECKING:
    from runtime.simulation.actions import Action
    from runtime.simulation.campaign import Campaign

_PROGRESS_S: Final = 2.0


@click.command()
@click.option(
    "--seed", type=click.IntRange(0), default=1, help="Of the first run; the next runs take the next."
)
@click.option("--runs", type=click.IntRange(1), help="How many; default: 1, or as many as --minutes allow.")
@click.option("--minutes", type=click.FloatRange(0, min_open=True), help="Run until this time is up.")
@click.option("--steps", type=click.IntRange(1, 1_000_000), help="Actions of a run; default: 30,000.")
@click.option(
    "--partitions", type=click.IntRange(2, 1_000), help="How many the simulated tree grows to; default: 300."
)
@click.option(
    "--planted", metavar="NAME", help="Plant this defect first; it must be found. 'list' names them."
)
@click.option(
    "--replay", type=click.Path(exists=True, dir_okay=False), help="Perform a saved schedule instead."
)
@click.option(
    "--save",
    type=click.Path(),
    help="Where the shrunk schedule of a failure goes; default: schedule-SEED.jsonl.",
)
@json_option
def simulate(
    seed: int,
    runs: int | None,
    minutes: float | None,
    steps: int | None,
    partitions: int | None,
    planted: str | None,
    replay: str | None,
    save: str | None,
    as_json: bool,
) -> int:
    """Simulate the hypervisor: no process, no real time, every rule checked after every step.

    The same seed gives the same digest. A failing run is shrunk to a short schedule, which is saved and replays.

    \b
    Example:
      partvisor simulate --seed 7
      partvisor simulate --minutes 120
      partvisor simulate --planted message-lost
    """
    from contextlib import nullcontext

    from runtime.simulation.planted import DEFECTS
    from runtime.simulation.planted import planted as plant
    from runtime.simulation.seeded_run import POPULATION_DEFAULT, STEPS_DEFAULT

    if planted == "list":
        print_json(list(DEFECTS)) if as_json else print("\n".join(DEFECTS))
        return ExitCode.DONE
    if planted is not None and planted not in DEFECTS:
        raise click.UsageError(f"no defect {planted!r}; these can be planted: {', '.join(DEFECTS)}")
    with plant(planted) if planted is not None else nullcontext():
        if replay is not None:
            return _replay(Path(replay), as_json)
        from runtime.simulation.campaign import run_campaign

        campaign = run_campaign(
            seed,
            runs=runs if runs is not None or minutes is not None else 1,
            seconds=None if minutes is None else minutes * 60,
            steps=steps or STEPS_DEFAULT,
            population=partitions or POPULATION_DEFAULT,
            progress=_Progress(),
        )
        return _report(campaign, seed, Path(save) if save is not None else None, as_json)


class _Progress:
    """A line on standard error every two seconds."""

    def __init__(self) -> None:
        self._next = time.monotonic() + _PROGRESS_S

    def __call__(self, campaign: "Campaign") -> None:
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + _PROGRESS_S
            click.echo(f"{campaign.runs} runs, {campaign.inputs:,} hypercalls and events, all well", err=True)


def _report(campaign: "Campaign", seed: int, save: Path | None, as_json: bool) -> int:
    record: dict[str, Any] = {
        "runs": campaign.runs,
        "first_seed": seed,
        "last_digest": campaign.digests[seed + campaign.runs - 1],
        "hypercalls_and_events": campaign.inputs,
        "refused": campaign.refusals,
        "messages_received": campaign.messages,
        "outcomes_seen": campaign.statuses,
        "partitions_max": campaign.population_max,
        "per_minute": round(campaign.inputs_per_minute),
    }
    if campaign.failure is None:
        print_json(record | {"violation": None}) if as_json else print_record(record)
        return ExitCode.DONE
    failure = campaign.failure
    assert failure.violation is not None
    click.echo(f"seed {failure.seed} broke a rule: {failure.violation}; shrinking", err=True)
    shortest, what, replays = _shrink(failure.actions, failure.violation.rule)
    path = save if save is not None else Path(f"schedule-{failure.seed}.jsonl")
    from runtime.simulation.actions import save_schedule

    save_schedule(path, shortest, {"seed": failure.seed, "violation": what})
    record |= {
        "failing_seed": failure.seed,
        "violation": what,
        "actions": len(failure.actions),
        "shrunk_to": len(shortest),
        "replays": replays,
        "saved_as": str(path),
    }
    if as_json:
        print_json(record)
    else:
        print_record(record)
        print()
        _print_actions(shortest)
    return ExitCode.FAILED


def _shrink(actions: "list[Action]", rule: str) -> tuple[list["Action"], str, int]:
    from runtime.simulation.shrink import Shrinker

    said_s = time.monotonic()

    def progress(length: int, replays: int) -> None:
        nonlocal said_s
        if time.monotonic() - said_s > _PROGRESS_S:
            said_s = time.monotonic()
            click.echo(f"{length} actions left after {replays} replays", err=True)

    shrinker = Shrinker(actions, rule, progress)
    shortest = shrinker.shrink()
    return shortest, str(shrinker.violation or "the replay does not fail"), shrinker.replays


def _replay(path: Path, as_json: bool) -> int:
    from runtime.simulation.actions import load_schedule
    from runtime.simulation.seeded_run import replay

    actions = load_schedule(path)
    outcome = replay(actions)
    violation = str(outcome.violation) if outcome.violation is not None else None
    record = {
        "actions": len(actions),
        "performed": outcome.performed,
        "digest": outcome.digest,
        "violation": violation,
    }
    print_json(record) if as_json else print_record(record)
    return ExitCode.DONE if violation is None else ExitCode.FAILED


def _print_actions(actions: "list[Action]") -> None:
    for action in actions:
        print(" ".join(f"{key}={value}" for key, value in action.to_json().items()))
