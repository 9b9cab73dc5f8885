"""One trial: boot, load, the driver strikes, a while to see what becomes of everyone, the end, and the verdicts.

    boot --> both sides verify --> the driver strikes --> watch --> end the load --> judge

Everything that is waited for has a bound, and the machine is ended however this is left.
"""

import contextlib
import json
import os
import signal
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from runtime.blast.faults import Fault
from runtime.blast.findings import Seen, Struck, Trial, deaths_of, seen_of
from runtime.blast.machine_files import RECORD_BYTES, BlastMachine, Guest, prepare
from runtime.chaos.blocks import image_values
from runtime.chaos.checker import CheckError, check
from runtime.chaos.history import History, HistoryError, read_history
from runtime.chaos.interruption import interrupts_kept
from runtime.chaos.running_machine import MachineEnded, RunningMachine
from runtime.chaos.verdict import Verdict
from runtime.config.architecture import Architecture

AFTER: Final = 300  # requests of the target's disk, until its driver strikes
BOOT_S: Final = 30.0
SETTLED: Final = 1  # reports of progress, a quarter of a second from each other, before the driver may strike
STRIKE_S: Final = 20.0  # from the moment when all verify until the driver has struck
WATCH_S: Final = 1.2  # at least, from the strike on
WATCH_S_MAX: Final = 5.0  # while it is not clear whether the target's guests go on
CALM: Final = 0.5  # of that time: so long guests must have gone on after the strike to be said to go on
END_S: Final = 4.0  # for guests to end; a machine that takes longer is ended. Well below harm.LIFE_S in all
_LOOK_S: Final = 0.02


@dataclass(frozen=True, slots=True)
class Order:
    source: str
    overrides: tuple[str, ...]
    architecture: Architecture
    target: str
    fault: Fault
    seed: int
    after: int = AFTER
    watch_s: float = WATCH_S


@interrupts_kept()
def run_trial(order: Order) -> Trial:
    """ConfigError, OSError: not even a machine could be started. Nothing is left, whatever is raised."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="partvisor-blast-") as name:
        folder = Path(name)
        machine = prepare(
            order.source,
            order.overrides,
            order.architecture,
            order.target,
            order.fault,
            order.seed,
            order.after,
            folder,
        )
        return _run(order, machine, folder, began)


def _run(order: Order, machine: BlastMachine, folder: Path, began: float) -> Trial:
    trouble, struck = "", None
    with RunningMachine(folder, machine.config) as running:
        try:
            struck = _watch(running, machine, order.watch_s)
        except (MachineEnded, TimeoutError) as error:
            trouble = str(error).splitlines()[0]
            if running.is_over:
                trouble += f": {_why_down(running)}"
        until_ns = time.monotonic_ns()
        down = _why_down(running) if running.is_over else ""
        if not running.is_over:
            _end(running, machine)
        running.close()
        left_behind = running.left_behind()
    struck = _read_record(machine) or struck  # it may have lived to say more
    struck_ns = until_ns if struck is None else struck.at_ns
    if struck is None and not trouble:
        trouble = "the driver did not strike"
    seen = [_side(machine, machine.on(target), struck_ns, until_ns) for target in (True, False)]
    on_target = [guest.name for guest in machine.on(target=True)]
    return Trial(
        architecture=order.architecture,
        fault=order.fault,
        seed=order.seed,
        seconds=time.monotonic() - began,
        struck=struck,
        deaths=deaths_of(running.events, struck_ns, until_ns, order.target, on_target, machine.drivers),
        machine_down=down,
        target=seen[0][0],
        bystander=seen[1][0],
        left_behind=tuple(left_behind),
        trouble="; ".join(filter(None, (trouble, seen[0][1], seen[1][1]))),
    )


# -- while it runs


def _watch(running: RunningMachine, machine: BlastMachine, watch_s: float) -> Struck | None:
    """Until it is known what became of everyone, or the time is over. None: the driver did not strike."""
    running.wait_for("machine.ready", patience_s=BOOT_S)
    if not running.wait_until(lambda: _all_verify(running, machine), BOOT_S):
        running.complain("load on both disks")
    machine.let_strike()
    deadline = time.monotonic() + STRIKE_S
    while (struck := _read_record(machine)) is None and time.monotonic() < deadline and not running.is_over:
        running.wait_for_news(_LOOK_S)
    if struck is None:
        return None
    while not running.is_over:
        elapsed_s = time.monotonic() - struck.at_ns / 1e9
        if elapsed_s > WATCH_S_MAX or (
            elapsed_s > watch_s and _is_clear(running, machine, struck.at_ns + CALM * watch_s * 1e9)
        ):
            break
        running.wait_for_news(_LOOK_S)
    return struck


def _all_verify(running: RunningMachine, machine: BlastMachine) -> bool:
    """For a while: so it is known what is usual, and the machine has settled."""
    told = [event["partition"] for event in running.all_of("guest.verified_progress")]
    return all(told.count(guest.name) > SETTLED for guest in machine.guests)


def _is_clear(running: RunningMachine, machine: BlastMachine, calm_ns: float) -> bool:
    """Each guest has gone on until then, or has ended."""
    clear = {
        event["partition"]
        for event in list(running.events)
        if event["kind"] == "guest.verified"
        or (event["kind"] == "guest.verified_progress" and event["monotonic_ns"] > calm_ns)
        or (event["kind"] == "partition.exited" and event["monotonic_ns"] < time.monotonic_ns() - 5e8)
    }
    return {guest.name for guest in machine.guests} <= clear


def _end(running: RunningMachine, machine: BlastMachine) -> None:
    """Guests finish what they have in flight. A machine that does not end then is told to; and then it is ended."""
    for event in running.all_of("partition.started"):
        if event["partition"] not in machine.drivers:
            with contextlib.suppress(ProcessLookupError):
                os.kill(event["fields"]["pid"], signal.SIGTERM)
    if not running.wait_until(lambda: running.is_over, END_S):
        running.process.send_signal(signal.SIGINT)
        running.wait_until(lambda: running.is_over, END_S)


def _why_down(running: RunningMachine) -> str:
    endings = running.all_of("machine.ending")
    if endings:
        return str(endings[0]["fields"]["reason"])
    return " ".join(running.errors.split())[-200:] or "it ended without a word"


def _read_record(machine: BlastMachine) -> Struck | None:
    with machine.images[machine.target].open("rb") as image:
        text = os.pread(image.fileno(), RECORD_BYTES, machine.record_at).strip(b"\0")
    if not text:
        return None
    try:
        record = json.loads(text)
        return Struck(record["at_ns"], record["pid"], record["did"])
    except (ValueError, KeyError, TypeError):  # read while it was written
        return None


# -- what the guests saw


def _side(machine: BlastMachine, guests: Sequence[Guest], struck_ns: int, until_ns: int) -> tuple[Seen, str]:
    """What they saw, each disk judged by itself; and what was troublesome about that."""
    histories: list[History] = []
    verdicts: list[Verdict] = []
    trouble: list[str] = []
    for device in dict.fromkeys(guest.device for guest in guests):
        own: list[History] = []
        for guest in guests:
            if guest.device != device:
                continue
            try:
                own.append(read_history(guest.history))
            except (HistoryError, OSError) as error:
                trouble.append(f"{guest.name}: {error}")
        histories += own
        try:
            verdicts.append(check(own, image=_image(machine, guests, device)))
        except (CheckError, OSError) as error:
            trouble.append(f"{device}: {error}")
    found = seen_of(histories, verdicts, struck_ns, until_ns)
    return found, "; ".join(trouble)


def _image(machine: BlastMachine, guests: Sequence[Guest], device: str) -> dict[int, int] | None:
    """What the disk holds in the blocks that they used. None: it was in memory, and is gone."""
    if not machine.images[device].exists():
        return None
    blocks = [guest.blocks for guest in guests if guest.device == device]
    first, stop = min(each.start for each in blocks), max(each.stop for each in blocks)
    with machine.images[device].open("rb") as image:
        return dict(enumerate(image_values(image.fileno(), first, stop - first), first))
