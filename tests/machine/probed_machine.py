"""A machine with a probing guest on a disk, as a test that breaks it sees it: what it asks the guest, what it injects.

Faults go in by the machine's management, as `partvisor inject` has them go in. What they did is asked of the guest, the
disk's image, the events and /proc, and never of the one who carries them out alone.
"""

import json
import os
import select
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Self

import psutil

from runtime.chaos.faults.catalogue import FAULTS
from runtime.chaos.faults.knobs import Knobs
from runtime.chaos.faults.orders import Order
from runtime.chaos.running_machine import RunningMachine
from tests.machine.probing_guest import BLOCK, content

PROBE: Final = "probe"
DISK: Final = "disk0"
DISK_BYTES: Final = 8 << 20
PATIENCE_S: Final = 45.0  # for anything that must happen; never a performance claim
ALWAYS: Final = Knobs()
ONCE: Final = Knobs(times=1)
_PRIVILEGES: Final = (
    "access_vp_runtime access_reference_counter access_synic access_synthetic_timers access_apic"
    " access_hypercall_msrs access_vp_index access_reference_tsc access_partition_id access_memory_pool"
    " post_messages signal_events access_stats_calls"
)


class Pending:
    """A command that the guest was given."""

    def __init__(self, machine: "ProbedMachine", number: int) -> None:
        self._machine, self._number = machine, number

    @property
    def is_answered(self) -> bool:
        self._machine._take(0)
        return self._number in self._machine._answers

    def answer(self) -> dict[str, Any]:
        ends = time.monotonic() + PATIENCE_S
        while not self.is_answered:
            assert time.monotonic() < ends, "the probing guest does not answer"
            assert not self._machine.is_over, self._machine.errors[-2000:]
            self._machine._take(0.05)
        return self._machine._answers.pop(self._number)


class Fault:
    """One that was injected."""

    def __init__(self, machine: "ProbedMachine", number: int) -> None:
        self._machine, self.number = machine, number
        self.is_healed = False

    @property
    def row(self) -> dict[str, Any]:
        rows = self._machine.request("injected")["injected"]
        return next(row for row in rows if row["order"]["number"] == self.number)

    @property
    def fired(self) -> int:
        return int(self.row["fired"])

    def fires(self, times: int = 1) -> int:
        """Once it has struck so often: how often."""
        ends = time.monotonic() + PATIENCE_S
        while (fired := self.fired) < times:
            assert time.monotonic() < ends, self.row
            time.sleep(0.002)
        return fired

    def heal(self) -> int:
        """When that began (CLOCK_MONOTONIC): what was told before came before."""
        self.is_healed = True
        now_ns = time.monotonic_ns()
        self._machine.request("heal", number=self.number)
        return now_ns


class ProbedMachine(RunningMachine):
    """One boot. The guest's disk is open once it is made."""

    def __init__(self, folder: Path, runtime_dir: Path, **settings: str | int) -> None:
        folder.mkdir(parents=True)
        self.image: Final = folder / "disk.img"
        self._answers: dict[int, dict[str, Any]] = {}
        self._asked = 0
        self._block = 0
        self._waiting = b""
        for name in ("commands", "answers"):
            os.mkfifo(folder / name)
        self._commands = os.open(folder / "commands", os.O_RDWR)
        self._said = os.open(folder / "answers", os.O_RDWR | os.O_NONBLOCK)
        config = folder / "machine.toml"
        config.write_text(_config(self.image, settings))
        super().__init__(folder, config, runtime_dir)

    def close(self) -> None:
        super().close()
        os.close(self._commands)
        os.close(self._said)

    def begin(self) -> Self:
        self.wait_for("guest.probing")
        assert "relid" in self.ask("open")
        self.ask("listen")
        return self

    # -- the guest

    def start(self, verb: str, **arguments: object) -> Pending:
        self._asked += 1
        line = json.dumps({"id": self._asked, "do": verb, **arguments})
        os.write(self._commands, line.encode() + b"\n")
        return Pending(self, self._asked)

    def ask(self, verb: str, **arguments: object) -> dict[str, Any]:
        return self.start(verb, **arguments).answer()

    def _take(self, wait_s: float) -> None:
        poll = select.poll()
        poll.register(self._said, select.POLLIN)
        if not poll.poll(wait_s * 1000):
            return
        *lines, self._waiting = (self._waiting + os.read(self._said, 1 << 20)).split(b"\n")
        for line in lines:
            answer = json.loads(line)
            self._answers[answer["id"]] = answer

    def fresh(self, count: int = 1) -> int:
        """So many blocks that nobody has touched: the first of them."""
        first, self._block = self._block, self._block + count
        assert self._block * BLOCK <= DISK_BYTES
        return first

    def filled(self) -> int:
        """A fresh block that holds its own number."""
        block = self.fresh()
        self.put(block, block)
        return block

    def put(self, block: int, tag: int) -> None:
        answer = self.ask("write", block=block, tag=tag)
        assert "error" not in answer, answer

    def get(self, block: int) -> bytes:
        answer = self.ask("read", block=block)
        assert "error" not in answer, answer
        return bytes.fromhex(answer["value"])

    def on_the_medium(self, block: int) -> bytes:
        with self.image.open("rb") as image:
            image.seek(block * BLOCK)
            return image.read(BLOCK)

    def works(self) -> None:
        """A write, its read and a flush: nothing of what was armed is left."""
        block = self.filled()
        assert self.get(block) == content(block)
        assert "error" not in self.ask("flush")

    def reopen(self) -> None:
        """Once the disk is offered, which it may not be yet."""
        self.ask("close")
        ends = time.monotonic() + PATIENCE_S
        while "relid" not in (answer := self.ask("open")):
            assert time.monotonic() < ends, answer
            time.sleep(0.005)

    # -- faults

    def inject(
        self, kind: str, target: str = DISK, knobs: Knobs = ALWAYS, *, seed: int = 9, **parameters: int | str
    ) -> Fault:
        order = Order(0, kind, target, FAULTS[kind].settle(parameters), knobs, seed)
        return Fault(self, int(self.request("inject", order=order.to_table())["number"]))

    @contextmanager
    def armed(
        self, kind: str, target: str = DISK, knobs: Knobs = ALWAYS, *, seed: int = 9, **parameters: int | str
    ) -> Iterator[Fault]:
        """Until the block ends: by then it must have struck."""
        fault = self.inject(kind, target, knobs, seed=seed, **parameters)
        yield fault
        if not fault.is_healed:
            fault.fires()
            fault.heal()

    # -- what happened

    def count_of(self, kind: str) -> int:
        return len(self.all_of(kind))

    def victim(self, name: str) -> psutil.Process:
        """The newest of that name."""
        if name in ("platform", "hypervisor", "root"):
            return psutil.Process(int(self.request("status")[f"{name}_pid"]))
        started = [event for event in self.all_of("partition.started") if event["partition"] == name]
        return psutil.Process(int(started[-1]["fields"]["pid"]))


def soon(condition: Callable[[], bool]) -> bool:
    """It comes true, within the patience for anything that must."""
    ends = time.monotonic() + PATIENCE_S
    while not (came := condition()) and time.monotonic() < ends:
        time.sleep(0.002)
    return came  # asked once: it may be true of this look alone


def _config(image: Path, settings: dict[str, str | int]) -> str:
    machine = {"name": "probed", "memory": "256MiB", **settings}
    privileges = ", ".join(f'"{name}"' for name in _PRIVILEGES.split())
    lines = ["[machine]", *(f"{key} = {json.dumps(value)}" for key, value in machine.items())]
    lines += ["[[root.device]]", f'name = "{DISK}"', 'kind = "disk"', 'backend = "file"']
    lines += [f'path = "{image}"', f"size = {DISK_BYTES}"]
    lines += ["[[partition]]", f'name = "{PROBE}"', 'program = "tests.machine.probing_guest:main"']
    lines += ['memory = "32MiB"', "vps = 2", f"privileges = [{privileges}]"]
    for name in ("commands", "answers"):
        lines += ["[[partition.file]]", f'name = "{name}"', 'mode = "read-write"']
        lines.append(f'path = "{image.parent / name}"')
    lines += ["[[partition.device]]", f'name = "{DISK}"', 'waiting = "block"', 'ring_bytes = "8KiB"']
    return "\n".join(lines) + "\n"
