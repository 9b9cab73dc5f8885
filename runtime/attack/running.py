"""Runs an attack: boots the machine, orders one attack at a time a quiet window beside each; reads what came of it."""

import contextlib
import json
import os
import random
import select
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from runtime.attack.catalogue import KILLED, Keeping
from runtime.attack.findings import Control, Finding, Report, Window
from runtime.attack.pace import HistoryPace, Pace, SampledPace
from runtime.attack.services import (
    ANSWERS,
    NEIGHBOUR_BLOCKS,
    ORDERS,
    HostileGuest,
    Service,
    guests_for,
    machine_text,
)
from runtime.attack.turns import CONTROLS, LONGEST, SETTLE_S, WINDOW_S, lead_of, turns_of, windows_of
from runtime.chaos.blocks import image_values
from runtime.chaos.checker import check
from runtime.chaos.history import HistoryError, read_history
from runtime.chaos.running_machine import PATIENCE_S, RunningMachine
from runtime.config.architecture import MONITOR_SUFFIX, Architecture
from runtime.exits import CommandError
from runtime.failure_reason import reason_of
from runtime.machine.rundir import find_machines

ANSWER_S: Final = 20.0  # beside the window
DESCRIPTORS_MAX: Final = 24  # that root or hypervisor may have more of after it than before
BURIAL_S: Final = 5.0  # for what dead guests had open
END_S: Final = 3.0  # for the end of a process that the kernel has killed
BOUND_S: Final = 20.0  # of one request of the neighbour's: beyond it counts as hung
_WINDOW_NS: Final = int(WINDOW_S * 1e9)
_READ_BYTES: Final = 1 << 16
_TRUSTED: Final = ("root", "hypervisor")
_MUST_NOT_BE: Final = ("root.exited", "hypervisor.exited", "driver.failed", "vmbus.service_failed")

Progress = Callable[[str], None]


class AttackFailed(CommandError):
    """The machine did not come up, or a guest did not answer: nothing is known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AttackOptions:
    seconds: float  # of each service under each architecture, without its boot
    seed: int
    only: frozenset[str] = frozenset()  # attacks; none: all


def attack(
    service: Service,
    architecture: Architecture,
    options: AttackOptions,
    folder: Path,
    progress: Progress = lambda line: None,
) -> Report:
    """Nothing of the machine is left. What goes wrong, but for Ctrl-C, is in the report, beside what was found before
    it: minutes of other pairs hang on this one."""
    chosen = [each for each in service.attacks(architecture) if not options.only or each.name in options.only]
    repeated = [each for each in chosen if each.keeping is not Keeping.LAST]
    windows = max((windows_of(each, len(repeated), options.seconds) for each in repeated), default=1)
    guests = guests_for(chosen, windows)
    controls = tuple(Control(name) for name in CONTROLS)
    begun, findings, checked = time.monotonic(), [Finding(each) for each in chosen], ""
    breaches: list[str] = []
    failed = ""
    try:
        with contextlib.ExitStack() as stack:
            run = _Run(service, architecture, guests, folder, options, stack)
            run.wait_until_ready(progress)
            run.carry_out(findings, controls, progress)
            breaches, checked = run.judge(findings)
    except AttackFailed as error:  # it boots without hostile guests, so this is a finding, too
        breaches = [str(error)]
    except Exception as error:
        failed = reason_of(error)
    return Report(
        service.name,
        str(architecture),
        options.seed,
        time.monotonic() - begun,
        tuple(findings),
        tuple(breaches),
        checked,
        controls,
        failed,
    )


class _Run:
    """One machine under attack."""

    def __init__(
        self,
        service: Service,
        architecture: Architecture,
        guests: Sequence[HostileGuest],
        folder: Path,
        options: AttackOptions,
        stack: contextlib.ExitStack,
    ) -> None:
        self._service, self._guests, self._folder = service, guests, folder
        self._rng = random.Random(options.seed)
        self._files: dict[str, tuple[int, int]] = {}
        folder.mkdir(parents=True, exist_ok=True)
        for guest in guests:
            self._files[guest.name] = tuple(  # type: ignore[assignment]
                _fifo(folder / f"{guest.name}.{file}", stack) for file in (ORDERS, ANSWERS)
            )
        for file in ("history", "samples"):
            (folder / file).touch()
        config = folder / "machine.toml"
        length = LONGEST * options.seconds + 10 * len(guests)  # of which neighbours have work
        config.write_text(machine_text(service, architecture, guests, folder, length, {}))
        self._machine = stack.enter_context(RunningMachine(folder, config))
        self._seconds = options.seconds
        self._windows: list[tuple[Finding | Control, tuple[int, int], tuple[int, int]]] = []
        self._descriptors: dict[str, int] = {}
        self._killed: set[str] = set()
        self._unread: dict[str, bytes] = {}  # what a guest answered beyond the line that was waited for

    # -- before

    def wait_until_ready(self, progress: Progress) -> None:
        """Every hostile guest waits for orders, and every neighbour is at work."""
        progress(f"{self._service.name}: booting")
        machine = self._machine
        names = {guest.name for guest in self._guests} | {each.name for each in self._service.neighbours}
        if not machine.wait_until(lambda: names <= self._started()):
            self._fail("boot")
        for guest in self._guests:
            if guest.attacks[0].keeping is not Keeping.LAST:
                self._await(guest.name, PATIENCE_S)
        wanted = {each.kind for each in self._service.neighbours}
        if "samples" in wanted and not machine.wait_until(
            lambda: bool(machine.all_of("guest.neighbour_ready"))
        ):
            self._fail("have a neighbour at work")
        if "verified" in wanted and not machine.wait_until(
            lambda: bool(machine.all_of("guest.verified_progress"))
        ):
            self._fail("have a neighbour at work")
        self._descriptors = self._count_descriptors()

    def _started(self) -> set[str]:
        return {event["partition"] for event in self._machine.all_of("partition.started")}

    def _fail(self, what: str) -> None:
        said = [
            str(event["fields"].get("text") or event["fields"].get("reason") or event["fields"].get("error"))
            for event in self._machine.events
            if event["kind"] in ("output", "machine.ending", "guest.build_failed", "vmbus.open_refused")
        ]
        raise AttackFailed(
            f"{self._service.name}: the machine did not {what}: "
            + " ".join(f"{self._machine.errors} {' '.join(said[-5:])}".split())[-1500:]
        )

    def _told(self) -> dict[str, Any]:
        """What hostile guests are told of others: more than they could find out."""
        pids = [
            event["fields"]["pid"]
            for kind in ("root.started", "hypervisor.started", "partition.started")
            for event in self._machine.all_of(kind)
            if not str(event["partition"]).startswith(("hostile", "breaker", "alone", "last"))
        ]
        folders = [found.path for found in find_machines([self._machine.runtime_dir])]
        sockets = [str(path) for each in folders for path in each.iterdir() if path.is_socket()]
        files = [str(self._folder / name) for name in ("disk.img", "history", "samples", "machine.toml")]
        names = {each.name for each in self._service.neighbours}
        ids = [
            event["fields"]["partition_id"]
            for event in self._machine.all_of("partition.started")
            if event["partition"] in names
        ]
        return {
            "neighbours": ids,
            "pids": pids,
            "sockets": sockets,
            "files": [each for each in files if Path(each).exists()],
        }

    # -- meanwhile

    def carry_out(self, findings: Sequence[Finding], controls: Sequence[Control], progress: Progress) -> None:
        told = self._told()
        who = {each.name: guest.name for guest in self._guests for each in guest.attacks}
        named: dict[str, Finding | Control] = {each.attack.name: each for each in findings}
        for control in controls:  # by one that attacks at other times
            named[control.name], who[control.name] = control, self._guests[0].name
        turns = turns_of([each.attack for each in findings], self._seconds, self._rng)
        each_once = len(set(turns))  # they come first, and are made however slow the host is
        begun, said = time.monotonic(), 0.0
        for number, name in enumerate(turns):
            if number >= each_once and time.monotonic() - begun > LONGEST * self._seconds:
                break
            if time.monotonic() - said > 2:
                said = time.monotonic()
                left_s = (said - begun) / number * (len(turns) - number) if number else 0
                about = f"; about {left_s:.0f} s to go" if number else ""
                progress(f"{self._service.name}: window {number + 1} of {len(turns)}, {name}{about}")
            self._take_turn(named[name], name, who[name], told)
        for one in findings:
            if one.attack.keeping is Keeping.LAST:
                self._let_it_end(one, who[one.attack.name])

    def _take_turn(self, of: Finding | Control, name: str, guest: str, told: Mapping[str, Any]) -> None:
        """A window with the attack and one without, in either order."""
        lead_s = lead_of(of.attack if isinstance(of, Finding) else None)
        order = {"attack": name, "seconds": lead_s + WINDOW_S, "args": told}
        quiet_first = self._rng.random() < 0.5
        quiet = _quiet_window() if quiet_first else (0, 0)
        time.sleep(SETTLE_S)
        self._tell(guest, {**order, "seed": self._rng.getrandbits(32)})
        answer = self._await(guest, ANSWER_S)
        begun_ns = int(answer["begun_ns"]) + int(lead_s * 1e9)
        ended_ns = max(int(answer["ended_ns"]), begun_ns + _WINDOW_NS)  # one that is soon done has its wake
        time.sleep(max(ended_ns - time.monotonic_ns(), 0) / 1e9 + SETTLE_S)
        if not quiet_first:
            quiet = _quiet_window()
        if isinstance(of, Finding):
            of.take(answer)
        elif answer["error"]:
            of.errors.append(f"{of.name}: {answer['error']}")
        if answer["made"]:  # otherwise both were quiet
            self._windows.append((of, (begun_ns, ended_ns), quiet))

    def _let_it_end(self, finding: Finding, guest: str) -> None:
        """One call, by which the process ends: the answer before it is the proof, its end the refusal."""
        quiet = _quiet_window()
        begun_ns = time.monotonic_ns()
        self._tell(guest, {"call": True})
        said = self._await(guest, ANSWER_S)
        finding.made += "about_to_call" in said
        ended = self._machine.wait_until(lambda: self._end_of(guest) is not None, END_S)
        event = self._end_of(guest)
        fate = _fate_of(event["fields"].get("signal")) if ended and event else "still alive"
        finding.outcomes[fate] += 1
        finding.evidence = f"said: {said}; its end: {fate}"
        if fate != KILLED:
            finding.breaches.append(
                f"{fate}: {self._unread.get(guest, b'').decode() or 'it said nothing'}".strip()
            )
        if ended:
            self._killed.add(guest)
        time.sleep(max(WINDOW_S - (time.monotonic_ns() - begun_ns) / 1e9, 0))
        self._windows.append((finding, (begun_ns, time.monotonic_ns()), quiet))

    def _end_of(self, guest: str) -> Mapping[str, Any] | None:
        ends = [event for event in self._machine.all_of("partition.exited") if event["partition"] == guest]
        return ends[-1] if ends else None

    def _tell(self, guest: str, order: Mapping[str, Any]) -> None:
        os.write(self._files[guest][0], (json.dumps(order) + "\n").encode())

    def _await(self, guest: str, patience_s: float) -> dict[str, Any]:
        answers, data = self._files[guest][1], self._unread.pop(guest, b"")
        deadline = time.monotonic() + patience_s
        poller = select.poll()
        poller.register(answers, select.POLLIN)
        while b"\n" not in data:
            if poller.poll(100):
                data += os.read(answers, _READ_BYTES)
            elif self._machine.is_over:
                self._fail(f"go on while {guest} attacked it")
            elif self._end_of(guest) is not None:
                self._fail(f"keep {guest}, which ended: {self._end_of(guest)}")
            elif time.monotonic() > deadline:
                self._fail(f"hear from {guest} within {patience_s:.0f} s")
        line, _, self._unread[guest] = data.partition(b"\n")
        answer: dict[str, Any] = json.loads(line)
        return answer

    # -- afterwards

    def judge(self, findings: Sequence[Finding]) -> tuple[list[str], str]:
        """What must not be, of the machine as a whole; and what was checked of the neighbours."""
        machine, breaches = self._machine, []
        for guest in self._guests:
            if guest.name not in self._killed:
                self._tell(guest.name, {})
        alone = {guest.name for guest in self._guests}
        machine.wait_until(lambda: alone <= self._ended(), PATIENCE_S)
        more = self._more_descriptors()
        breaches += [f"{name} has {count} descriptors more than before" for name, count in more.items()]
        if dead := self._ended() - alone:
            breaches.append(f"died under the attack: {', '.join(sorted(dead))}")
        breaches += [kind for kind in _MUST_NOT_BE if machine.all_of(kind)]
        workers = [each for each in self._service.neighbours if each.kind != "partner"]
        for event in machine.all_of("partition.started"):
            if event["partition"] in {each.name for each in workers}:
                with contextlib.suppress(ProcessLookupError):  # it died under the attack
                    os.kill(event["fields"]["pid"], signal.SIGTERM)
        machine.wait_until(lambda: {each.name for each in workers} <= self._ended(), PATIENCE_S)
        pace, checked, wrong = self._check_neighbour()
        for of, attacked, quiet in self._windows:
            of.windows.append(Window(pace.per_second(*attacked), pace.per_second(*quiet)))
        with contextlib.suppress(CommandError):
            machine.request("stop")
            machine.wait_until(lambda: machine.is_over, PATIENCE_S)
        return breaches + wrong, checked

    def _ended(self) -> set[str]:
        """A driver partition that ended was started again; a monitor ends with its guest."""
        return {
            event["partition"]
            for event in self._machine.all_of("partition.exited")
            if not str(event["partition"]).endswith(MONITOR_SUFFIX)
        }

    def _more_descriptors(self) -> dict[str, int]:
        """Where there are too many more than before, even after a while: dead guests are buried by and by."""
        ends = time.monotonic() + BURIAL_S
        while True:
            counts = {
                name: n - self._descriptors.get(name, n) for name, n in self._count_descriptors().items()
            }
            more = {name: count for name, count in counts.items() if count > DESCRIPTORS_MAX}
            if not more or time.monotonic() > ends:
                return more
            time.sleep(0.05)

    def _count_descriptors(self) -> dict[str, int]:
        counts = {}
        for name in _TRUSTED:
            for event in self._machine.all_of(f"{name}.started")[-1:]:
                with contextlib.suppress(OSError):
                    counts[name] = sum(1 for _ in Path(f"/proc/{event['fields']['pid']}/fd").iterdir())
        return counts

    def _check_neighbour(self) -> tuple[Pace, str, list[str]]:
        wrong: list[str] = []
        if self._service.neighbours[0].kind == "samples":
            done = self._machine.all_of("guest.neighbour_done")
            if not done:
                wrong.append("the neighbour did not end as it should")
            bad = sum(event["fields"]["wrong"] for event in done)
            count = sum(event["fields"]["exchanges"] for event in done)
            if bad:
                wrong.append(f"{bad} of the neighbour's {count} exchanges were wrong")
            return SampledPace.of(self._folder / "samples"), f"{count} exchanges, {bad} wrong", wrong
        try:
            history = read_history(self._folder / "history")
        except HistoryError as error:
            raise AttackFailed(f"the neighbour's history: {error}") from error
        descriptor = os.open(self._folder / "disk.img", os.O_RDONLY)
        try:
            image = dict(enumerate(image_values(descriptor, 0, NEIGHBOUR_BLOCKS)))
        finally:
            os.close(descriptor)
        verdict = check([history], bound_s=BOUND_S, image=image)
        if not verdict.passed:
            wrong += [f"the neighbour's disk: {violation.text}" for violation in verdict.violations[:3]]
            wrong = wrong or [f"the neighbour's disk: {verdict.judgement}"]
        count = len(history.operations)
        return HistoryPace.of(history), f"{count} requests, {verdict.judgement}", wrong


def _fate_of(number: int | None) -> str:
    return "ended by itself" if number is None else signal.Signals(number).name


def _fifo(path: Path, stack: contextlib.ExitStack) -> int:
    os.mkfifo(path, 0o600)
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    stack.callback(os.close, fd)
    return fd


def _quiet_window() -> tuple[int, int]:
    begun_ns = time.monotonic_ns()
    time.sleep(WINDOW_S)
    return begun_ns, time.monotonic_ns()
