"""A guest that does what a test tells it, line by line, and says exactly what came of it.

Commands come through the file "commands", a FIFO, as `{"id": 1, "do": "read", "block": 3}`; answers go through
"answers", each with the moment when it was done (CLOCK_MONOTONIC, which is one clock for the whole host). So a test
knows what had happened when, however late it hears of it.
"""

import contextlib
import json
import os
import select
import signal
import threading
import time
from collections.abc import Callable
from typing import Any, Final

from bus.channel_messages import GpadlHeader, GpadlTeardown
from bus.guids import SCSI
from bus.packets import GpaRange, encode_gpa_ranges
from bus.synic import MESSAGE_CONNECTION, TimerExpired
from partitions.child import Partition
from partitions.machine_plan import instance_guid
from partitions.storage.disk import Disk
from partitions.storage.errors import DiskError
from partitions.vsc.channel import GuestChannel
from partitions.vsc.conversation import VmbusError
from runtime.abi import HypercallCode, HypercallError
from runtime.statistics import StatsObject

BLOCK: Final = 4096
DATA_BYTES: Final = 256 << 10
TICK_SINT: Final = 5  # not VMBUS_SINT
TICK_VP: Final = 1
_OWN_GPADLS: Final = 0x5000  # above those that the driver counts
_GREED_BYTES: Final = 64 << 20


def content(tag: int) -> bytes:
    """Of a block: each 8 bytes of it say which block it is, and which half."""
    return tag.to_bytes(8, "little") * (BLOCK // 16) + (~tag & (1 << 64) - 1).to_bytes(8, "little") * (
        BLOCK // 16
    )


class Probe:
    """The commands, each a method: what it returns is the answer."""

    def __init__(self, partition: Partition) -> None:
        self._partition = partition
        self._opened: GuestChannel | None = None
        self._disk: Disk | None = None
        self._heard: list[tuple[int, str]] = []  # channel messages of the host: when, what
        self._next_gpadl = _OWN_GPADLS
        self._signals = 0
        self._vp = partition.vps[TICK_VP]
        self._vp.enable((TICK_SINT,))
        self._statistics: Any = None
        signal.signal(signal.SIGWINCH, self._interrupted)

    def _interrupted(self, *_: object) -> None:
        self._signals += 1

    # -- its disk

    def open(self) -> dict[str, Any]:
        try:
            opened = self._partition.open_channel("disk0", SCSI, DATA_BYTES)
            self._opened = opened
            self._disk = Disk(opened.channel, opened.data, opened.data_gpfn)
        except (VmbusError, DiskError, HypercallError) as error:
            self.close()
            return {"error": type(error).__name__, "text": str(error)}
        return {"relid": opened.relid}

    def close(self) -> dict[str, Any]:
        opened, self._opened, self._disk = self._opened, None, None
        if opened is not None:
            opened.close()
        return {}

    def _try(self, act: Callable[[Disk], Any]) -> dict[str, Any]:
        assert self._disk is not None, "no disk is open"
        try:
            return {"value": act(self._disk)}
        except DiskError as error:
            return {"error": type(error).__name__, "errno": error.errno, "text": str(error)}

    def read(self, block: int, timeout_s: float | None = None) -> dict[str, Any]:
        def act(disk: Disk) -> str:
            disk.timeout_s = timeout_s
            try:
                return disk.read(block * BLOCK, BLOCK).hex()
            finally:
                disk.timeout_s = None

        return self._try(act)

    def write(self, block: int, tag: int, timeout_s: float | None = None) -> dict[str, Any]:
        def act(disk: Disk) -> None:
            disk.timeout_s = timeout_s
            try:
                disk.write(block * BLOCK, content(tag))
            finally:
                disk.timeout_s = None

        return self._try(act)

    def flush(self) -> dict[str, Any]:
        return self._try(lambda disk: disk.flush())

    def reads(self, block: int, times: int, timeout_s: float) -> dict[str, Any]:
        """Until one of them ends otherwise than well: how, and how many went before."""
        for number in range(times):
            if "error" in (answer := self.read(block, timeout_s)):
                return answer | {"before": number}
        return {"before": times}

    def writes(self, first: int, tags: list[int], timeout_s: float) -> dict[str, Any]:
        """One block each; the errors of those that failed."""
        answers = [self.write(first + index, tag, timeout_s) for index, tag in enumerate(tags)]
        return {"errors": [answer.get("error") for answer in answers]}

    def pile(self, count: int, timeout_s: float) -> dict[str, Any]:
        """More flushes at once than its ring has room for."""

        def act(disk: Disk) -> None:
            disk.timeout_s = timeout_s
            try:
                disk.wait_all([disk.submit_flush() for _ in range(count)])
            finally:
                disk.timeout_s = None

        return self._try(act)

    def counters(self) -> dict[str, Any]:
        """Of its disk's client, and of its channel."""
        assert self._disk is not None
        assert self._opened is not None
        return {**self._opened.channel.statistics(), **self._disk.statistics()}

    # -- channel messages

    def listen(self) -> dict[str, Any]:
        """Keep each message of the host's from now on, beside what the driver makes of it."""
        client, heard = self._partition.vmbus._client, self._heard
        receive = client.receive

        def keep(payload: bytes) -> Any:
            heard.append((time.monotonic_ns(), bytes(payload).hex()))
            return receive(payload)

        client.receive = keep  # type: ignore[assignment, method-assign]
        return {}

    def heard(self) -> dict[str, Any]:
        messages, self._heard[:] = list(self._heard), []
        return {"messages": messages}

    def lend(self, count: int) -> dict[str, Any]:
        """Hand over the channel's first page so many times, in messages of our own; nobody waits for the answers."""
        assert self._opened is not None
        ranges = encode_gpa_ranges((GpaRange.of_slot(self._opened.slot, 0, BLOCK),))
        gpadls, posted_ns = [], time.monotonic_ns()
        for _ in range(count):
            gpadl, self._next_gpadl = self._next_gpadl, self._next_gpadl + 1
            gpadls.append(gpadl)
            self._post(GpadlHeader(self._opened.relid, gpadl, len(ranges), 1, ranges).encode())
        return {"relid": self._opened.relid, "gpadls": gpadls, "posted_ns": posted_ns}

    def unlend(self, relid: int, gpadls: list[int]) -> dict[str, Any]:
        for gpadl in gpadls:
            self._post(GpadlTeardown(relid, gpadl).encode())
        return {}

    def _post(self, payload: bytes) -> None:
        bus = self._partition.vmbus
        with bus._changed:
            bus._post(MESSAGE_CONNECTION, payload)

    # -- its second VP: timers, and the line itself

    def tick(self, wait_ms: int) -> dict[str, Any]:
        """A timer's message, a millisecond from now. When it should have come, when it did, and when the line rang."""
        if _readable(self._vp.line_fd, 0):  # what rang before is not of this timer
            os.eventfd_read(self._vp.line_fd)
        self._vp.timers[0].one_shot(self._partition.reference_time() + 10_000, sint=TICK_SINT)
        raised, rang_ns = self._raises(wait_ms, 1)
        expired, late, slots = 0, 0, 0
        for _, _, payload in self._vp.take_messages(TICK_SINT):
            tick = TimerExpired.decode(payload)
            expired, late, slots = tick.expired, tick.delivered - tick.expired, slots + 1
        reached = self._partition.reference_time() - expired if slots else 0
        return {
            "raised": raised,
            "rang_ns": rang_ns,
            "messages": slots,
            "late_us": late // 10,
            "reached_us": reached // 10,
        }

    def raises(self, wait_ms: int, enough: int) -> dict[str, Any]:
        """How often the line is raised, until that often or so long."""
        raised, rang_ns = self._raises(wait_ms, enough)
        messages = sum(1 for _ in self._vp.take_messages(TICK_SINT))
        return {"raised": raised, "rang_ns": rang_ns, "messages": messages}

    def _raises(self, wait_ms: int, enough: int) -> tuple[int, int]:
        ends, raised, rang_ns = time.monotonic() + wait_ms / 1000, 0, 0
        while raised < enough and (left := ends - time.monotonic()) > 0:
            if not _readable(self._vp.line_fd, left):
                break
            with contextlib.suppress(BlockingIOError):
                raised += os.eventfd_read(self._vp.line_fd)
            rang_ns = time.monotonic_ns()
        return raised, rang_ns

    # -- time, calls, and itself

    def clocks(self, pause_ms: int) -> dict[str, Any]:
        """How much the host's clock went on, at least and at most, while its own did so much. All in us."""
        first = time.monotonic_ns(), self._partition.reference_time(), time.monotonic_ns()
        time.sleep(pause_ms / 1000)
        last = time.monotonic_ns(), self._partition.reference_time(), time.monotonic_ns()
        return {
            "own_us": (last[1] - first[1]) // 10,
            "least_us": (last[0] - first[2]) // 1000,
            "most_us": (last[2] - first[0]) // 1000,
            "at_us": [first[1] // 10, last[1] // 10],
            "host_us": [first[0] // 1000, last[2] // 1000],
        }

    def call(self) -> dict[str, Any]:
        """GET_PARTITION_ID: its status, and how long it took."""
        began_ns, status = time.monotonic_ns(), "SUCCESS"
        try:
            self._partition.hypercalls.call(HypercallCode.GET_PARTITION_ID)
        except HypercallError as error:
            status = error.status.name
        return {"status": status, "took_us": (time.monotonic_ns() - began_ns) // 1000}

    def refused(self) -> dict[str, Any]:
        """Hypercalls in its name: made, and refused."""
        if self._statistics is None:
            self._statistics = self._partition.hypercalls.map_stats_page(StatsObject.PARTITION)
        counters = self._statistics.read().counters
        return {"made": counters["hypercalls"], "refused": counters["hypercalls_refused"]}

    def signals(self) -> dict[str, Any]:
        return {"count": self._signals}

    def grow(self) -> dict[str, Any]:
        """Ask for much memory."""
        try:
            return {"bytes": len(bytearray(_GREED_BYTES))}
        except MemoryError:
            return {"error": "MemoryError"}

    def descriptors(self, count: int) -> dict[str, Any]:
        """So many at once, or as many as there are to be had."""
        opened: list[int] = []
        with contextlib.suppress(OSError):
            while len(opened) < count:
                opened.append(os.dup(self._vp.line_fd))
        for fd in opened:
            os.close(fd)
        return {"opened": len(opened)}

    def threads(self, count: int) -> dict[str, Any]:
        """Start so many, all there at once; or as many as it may."""
        end, started = threading.Event(), list[threading.Thread]()
        with contextlib.suppress(RuntimeError):
            while len(started) < count:
                thread = threading.Thread(target=end.wait)
                thread.start()
                started.append(thread)
        end.set()
        for thread in started:
            thread.join()
        return {"started": len(started)}

    def offers(self) -> dict[str, Any]:
        """Whether its disk is offered at the moment."""
        try:
            self._partition.vmbus.find_offer(SCSI, instance_guid(self._partition.name, "disk0"))
        except VmbusError:
            return {"offered": False}
        return {"offered": True}


def _readable(fd: int, timeout_s: float) -> bool:
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(timeout_s * 1000))


def main(partition: Partition) -> None:
    """Until it is told to leave."""
    probe = Probe(partition)
    commands, answers = partition.files["commands"], partition.files["answers"]
    waiting = b""
    partition.report("probing")
    while True:
        while b"\n" not in waiting:
            waiting += os.read(commands, 65536)
        line, waiting = waiting.split(b"\n", 1)
        command = json.loads(line)
        number, verb = command.pop("id"), command.pop("do")
        if verb == "leave":
            return
        answer = getattr(probe, verb)(**command)
        answer |= {"id": number, "done_ns": time.monotonic_ns()}
        os.write(answers, json.dumps(answer).encode() + b"\n")
