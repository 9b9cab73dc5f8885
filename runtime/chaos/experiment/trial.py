"""One trial: boot, steady state, faults at their moments, healing whatever happens, the end, and what it leaves.

    boot --> steady --> inject, heal at their moments --> heal all --> settle --> finish the load --> gather

Undo is unconditional: all that is armed is healed before the load is told to end, and the machine is ended however this
is left. A trial in which something did not come about as planned is told so in `trouble`; it is never green.
"""

import contextlib
import heapq
import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from runtime.chaos.blocks import image_values
from runtime.chaos.experiment import fates
from runtime.chaos.experiment.evidence import Balance, Evidence
from runtime.chaos.experiment.machine_files import TrialMachine, prepare
from runtime.chaos.experiment.model import Experiment
from runtime.chaos.experiment.schedule import Injection, Schedule
from runtime.chaos.faults.catalogue import FAULTS
from runtime.chaos.history import History, HistoryError, read_history
from runtime.chaos.running_machine import MachineEnded, RunningMachine
from runtime.chaos.sequence import Sequence as MessageSequence
from runtime.chaos.sequence import SequenceError, read_sequence
from runtime.config.architecture import Architecture
from runtime.exits import CommandError

SETTLE_S_MIN: Final = 0.3  # under load, between the last healing and the second count of resources
_END_PATIENCE_S: Final = 30.0
_LOOK_S: Final = 0.25  # how often the fired faults are asked for
_BALANCE_PAUSE_S: Final = 0.03
_BALANCE_S_MAX: Final = 1.0


class TrialTrouble(Exception):
    """The trial did not come about as planned. Whatever else it showed, it is not green."""


@dataclass(slots=True)
class _Progress:
    """What a trial knows so far."""

    began_ns: int = 0
    healed_ns: int = 0
    refused: dict[int, str] = field(default_factory=dict)
    counts: dict[int, tuple[int, int]] = field(default_factory=dict)  # passes, fired
    given: dict[int, int] = field(default_factory=dict)  # a schedule's number to the machine's
    before: Balance = field(default_factory=lambda: Balance(0, 0, 0))
    after: Balance | None = None
    trouble: list[str] = field(default_factory=list)


def run_trial(
    experiment: Experiment,
    schedule: Schedule,
    architecture: Architecture | None,
    folder: Path,
    machine_text: str = "",
) -> tuple[Evidence, str]:
    """The evidence, and what was troublesome, "" if nothing was.

    Args:
        folder: empty; what the trial leaves is in there.
        machine_text: of the configuration that the experiment names, if its file is not to be read.

    Raises ConfigError, OSError: not even a machine could be started.
    """
    prepared = prepare(experiment, folder, architecture, machine_text)
    progress = _Progress()
    began = time.monotonic_ns()
    with RunningMachine(folder, prepared.config) as machine:
        try:
            _reach_steady_state(machine, prepared, experiment)
            progress.before = _balance(machine)
            progress.began_ns = time.monotonic_ns()
            _carry_out(machine, experiment, schedule, progress)
        except (TrialTrouble, MachineEnded, TimeoutError) as error:
            progress.trouble.append(str(error).splitlines()[0] + _last_words(machine))
        finally:
            _heal_all(machine, progress)
        settle_s = max(SETTLE_S_MIN, experiment.experiment.settle_ms / 1000)
        machine.wait_until(lambda: _load_is_over(machine), settle_s)
        if not machine.is_over:
            progress.after = _balance(machine)
        exit_code = _end(machine, prepared, experiment, progress)
        return _gather(machine, prepared, schedule, progress, exit_code, began), "; ".join(progress.trouble)


def _last_words(machine: RunningMachine) -> str:
    """Of a machine that ended, or of a program in it that failed: the last line, where there is one."""
    lines = machine.errors.strip().splitlines() if machine.is_over else []
    lines = lines or [
        str(event["fields"].get("text", ""))
        for event in machine.all_of("output")
        if event["fields"].get("stream") == "stderr"
    ]
    return f": {lines[-1]}" if lines and lines[-1].strip() else ""


def _reach_steady_state(machine: RunningMachine, prepared: TrialMachine, experiment: Experiment) -> None:
    patience_s = experiment.steady.within_ms / 1000
    machine.wait_for("machine.ready", patience_s=patience_s)
    wanted = {guest.name for guest in prepared.guests} | set(prepared.sequences)

    def steady() -> bool:
        done = {
            event["partition"]
            for kind in ("guest.verified_progress", "guest.sequenced_progress")
            for event in machine.all_of(kind)
            if event["fields"]["operations"] >= experiment.steady.operations
        }
        return wanted <= done

    if not machine.wait_until(steady, patience_s):
        raise TrialTrouble(f"no steady state within {patience_s:g} s")


def _balance(machine: RunningMachine) -> Balance:
    """What it has when two looks agree: a process on its way, such as the next standby, has its parent's files, too."""
    deadline = time.monotonic() + _BALANCE_S_MAX
    balance = Balance.take([machine.process.pid])
    while time.monotonic() < deadline:
        machine.wait_until(lambda: False, _BALANCE_PAUSE_S)
        before, balance = balance, Balance.take([machine.process.pid])
        if (before.processes, before.descriptors) == (balance.processes, balance.descriptors):
            break
    return balance


# -- the faults


def _carry_out(
    machine: RunningMachine, experiment: Experiment, schedule: Schedule, progress: _Progress
) -> None:
    """Until the last moment has come and gone, the load has ended, or its time is over."""
    began_s = progress.began_ns / 1e9
    ends_s = began_s + experiment.experiment.seconds
    due: list[tuple[float, int, Callable[[], None]]] = []  # when, order of entry, what
    entered = 0

    def at(instant_s: float, what: Callable[[], None]) -> None:
        nonlocal entered
        entered += 1
        heapq.heappush(due, (instant_s, entered, what))

    def inject(injection: Injection) -> None:
        if _inject(machine, injection, progress) and injection.for_ms is not None:
            number = injection.order.number
            at(time.monotonic() + injection.for_ms / 1000, lambda: _heal(machine, number, progress))

    awaited = [injection for injection in schedule if injection.moment.on]
    for injection in schedule:
        if not injection.moment.on:
            at(began_s + injection.moment.after_ms / 1000, lambda one=injection: inject(one))  # type: ignore[misc]
    looked = 0.0
    while (due or awaited) and not _load_is_over(machine) and time.monotonic() < ends_s:
        for injection in list(awaited):
            if (instant := _event_instant(machine, injection, progress)) is not None:
                awaited.remove(injection)
                at(
                    instant + injection.moment.after_ms / 1000,
                    lambda one=injection: inject(one),  # type: ignore[misc]
                )
        now = time.monotonic()
        while due and due[0][0] <= now:
            heapq.heappop(due)[2]()
        if now - looked > _LOOK_S:
            looked = now
            _count(machine, progress)
        patience = min(due[0][0] if due else ends_s, ends_s, now + _LOOK_S) - time.monotonic()
        if patience > 0:
            machine.wait_for_news(patience)
    _wait_for_the_last_strike(machine, schedule, ends_s, progress)
    late = [injection.order.number for injection in awaited]
    late += [number for number in (one.order.number for one in schedule) if number not in progress.given]
    for number in sorted(set(late) - set(progress.refused)):
        progress.refused[number] = "its moment did not come"


def _wait_for_the_last_strike(
    machine: RunningMachine, schedule: Schedule, ends_s: float, progress: _Progress
) -> None:
    """Faults without a duration stay until they have struck for the last time, or for as long as there is load."""
    lasting = [one for one in schedule if one.for_ms is None and one.order.number not in progress.refused]
    lasting = [one for one in lasting if one.order.number in progress.given]
    while lasting and not _load_is_over(machine) and (left := ends_s - time.monotonic()) > 0:
        _count(machine, progress)
        lasting = [one for one in lasting if not is_spent(one, progress.counts)]
        if lasting:
            machine.wait_for_news(min(left, _LOOK_S))


def is_spent(injection: Injection, counts: Mapping[int, tuple[int, int]]) -> bool:
    """It cannot strike any more."""
    order = injection.order
    kind = FAULTS.get(order.kind)
    most = order.knobs.times
    if kind is not None and kind.strikes_once:
        most = 1
    elif kind is not None and kind.strikes:
        most = int(kind.settle(order.parameters)[kind.strikes])
    _, fired = counts.get(order.number, (0, 0))
    return fired >= most > 0


def _event_instant(machine: RunningMachine, injection: Injection, progress: _Progress) -> float | None:
    moment = injection.moment
    found = [
        event["monotonic_ns"]
        for event in machine.all_of(moment.on)
        if event["monotonic_ns"] >= progress.began_ns
    ]
    return found[moment.nth - 1] / 1e9 if len(found) >= moment.nth else None


def _load_is_over(machine: RunningMachine) -> bool:
    return machine.is_over or any(map(machine.all_of, ("guest.verified", "guest.sequenced")))


def _inject(machine: RunningMachine, injection: Injection, progress: _Progress) -> bool:
    number = injection.order.number
    table = injection.order.to_table()
    try:
        progress.given[number] = int(machine.request("inject", order=table)["number"])
    except CommandError as error:
        progress.given.setdefault(number, 0)
        progress.refused[number] = str(error)
        return False
    return True


def _heal(machine: RunningMachine, number: int, progress: _Progress) -> None:
    with contextlib.suppress(CommandError):
        machine.request("heal", number=progress.given[number])


def _heal_all(machine: RunningMachine, progress: _Progress) -> None:
    """Whatever happened: nothing stays armed. A machine that is gone has nothing armed."""
    _count(machine, progress)
    with contextlib.suppress(CommandError, OSError):
        machine.request("heal", number=0)
    progress.healed_ns = time.monotonic_ns()


def _count(machine: RunningMachine, progress: _Progress) -> None:
    ours = {given: number for number, given in progress.given.items()}
    with contextlib.suppress(CommandError, OSError):
        for table in machine.request("injected")["injected"]:
            if (number := ours.get(table["order"]["number"])) is not None:
                progress.counts[number] = (table["passes"], table["fired"])


# -- the end


def _end(machine: RunningMachine, prepared: TrialMachine, experiment: Experiment, progress: _Progress) -> int:
    """The machine's exit code. Its guests are asked to finish; a machine that does not end is ended."""
    patience_s = experiment.experiment.drain_ms / 1000
    if not machine.wait_until(lambda: _load_is_over(machine), 0):
        _finish_load(machine, prepared)
    if not machine.wait_until(lambda: machine.is_over, patience_s):
        progress.trouble.append(f"the machine did not end within {patience_s:g} s after its load was to")
        machine.process.send_signal(signal.SIGINT)
        machine.wait_until(lambda: machine.is_over, _END_PATIENCE_S)
    machine.process.kill()
    return machine.process.wait()


def _finish_load(machine: RunningMachine, prepared: TrialMachine) -> None:
    """SIGTERM to whoever is no driver: verifying guests finish what they have in flight, and end."""
    for event in machine.all_of("partition.started"):
        if event["partition"] not in prepared.drivers:
            with contextlib.suppress(ProcessLookupError):
                os.kill(event["fields"]["pid"], signal.SIGTERM)


def _gather(
    machine: RunningMachine,
    prepared: TrialMachine,
    schedule: Schedule,
    progress: _Progress,
    exit_code: int,
    booted_ns: int,
) -> Evidence:
    ended_ns = time.monotonic_ns()
    events: Sequence[Any] = list(machine.events)
    began_ns = progress.began_ns or booted_ns
    histories: dict[str, History] = {}
    for guest in prepared.guests:
        try:
            histories[guest.name] = read_history(guest.history)
        except (HistoryError, OSError) as error:
            progress.trouble.append(f"{guest.name}: {error}")
    sequences: dict[str, MessageSequence] = {}
    for name, path in prepared.sequences.items():
        try:
            sequences[name] = read_sequence(path)
        except (SequenceError, OSError) as error:
            progress.trouble.append(f"{name}: {error}")
    own = fates.fates_of(
        schedule,
        progress.refused,
        _own_numbers(events, progress),
        progress.counts,
        histories.values(),
        began_ns,
    )
    for fate in own:
        if fate.error:
            progress.trouble.append(f"fault {fate.number}: {fate.error}")
        elif not fate.fired:
            progress.trouble.append(f"fault {fate.number} did not fire")
    if not prepared.guests:
        progress.trouble.extend(() if events else ["the machine said nothing"])
    return Evidence(
        machine=prepared,
        schedule=schedule,
        fates=own,
        histories=histories,
        values={device: _values(prepared, device) for device in prepared.images},
        events=events,
        began_ns=began_ns,
        healed_ns=progress.healed_ns,
        ended_ns=ended_ns,
        before=progress.before,
        after=progress.after,
        exit_code=exit_code,
        errors=machine.errors,
        left_behind=machine.left_behind(),
        sequences=sequences,
    )


def _own_numbers(events: Sequence[Any], progress: _Progress) -> list[Mapping[str, Any]]:
    """Events of faults, by the schedule's numbers in the place of the machine's."""
    ours = {given: number for number, given in progress.given.items() if given}
    renamed = []
    for event in events:
        if event["kind"].startswith("fault."):
            number = ours.get(event["fields"].get("number"), 0)
            event = {**event, "fields": {**event["fields"], "number": number}}
        renamed.append(event)
    return renamed


def _values(prepared: TrialMachine, device: str) -> dict[int, int]:
    """What its image holds in the blocks that its guests used."""
    guests = prepared.guests_on(device)
    if not guests:
        return {}
    first = min(guest.blocks.start for guest in guests)
    stop = max(guest.blocks.stop for guest in guests)
    try:
        descriptor = os.open(prepared.images[device], os.O_RDONLY)
    except OSError:
        return {}
    try:
        return dict(enumerate(image_values(descriptor, first, stop - first), first))
    except (OSError, EOFError, ValueError):
        return {}
    finally:
        os.close(descriptor)
