"""A partition of several VPs for tests of the broker: each VP's thread notes what reaches it. What they
noted goes into the partition's first file."""

import json
import mmap
import os
import time
from collections import Counter
from typing import Any, Final

from bus.synic import MessageType, TimerExpired
from partitions.vp.processor import VirtualProcessor
from partitions.vp.reference_clock import ReferenceClock
from runtime.abi import CRASH_MESSAGE, CRASH_NOTIFY, RegisterName
from runtime.hypercalls.caller import HypercallPort

MESSAGE_SINT: Final = 5
EVENT_SINT: Final = 6
TIMER_SINT: Final = 7
TIMER_VECTOR: Final = 0xA0
TO_ROOT: Final = 1
STOP: Final = b"stop"
TICKS: Final = 5


def main(port: HypercallPort) -> int:
    birth = port.get_birth()
    args: Any = birth.args
    vps = [VirtualProcessor(lines, port) for lines in birth.vps]
    if args["do"] == "crash":
        return _crash(port)
    notes = {vp.index: Counter[str]() for vp in vps}
    for vp in vps:
        vp.enable((MESSAGE_SINT,), 0x50)
        vp.enable((EVENT_SINT,), 0x60)
        vp.enable((TIMER_SINT,), 0x71)
        vp.take_vectors()
    clock = ReferenceClock(port)
    wrong: list[tuple[int, int, int]] = []  # timers that came early, twice, or out of order

    def serve(vp: VirtualProcessor) -> None:
        note = notes[vp.index]
        last = born = clock.read()
        vp.timers[0].periodic(10_000 * (vp.index + 1), sint=TIMER_SINT)
        vp.timers[1].one_shot(born + 20_000, vector=TIMER_VECTOR + vp.index)
        stopped = False
        while not stopped or note["tick"] < TICKS or not note[f"vector {TIMER_VECTOR + vp.index}"]:
            vp.wait()
            for vector in vp.take_vectors():
                note[f"vector {vector}"] += 1
            for flag in vp.take_events(EVENT_SINT):
                note[f"flag {flag}"] += 1
            for message_type, sender, payload in vp.take_messages(TIMER_SINT):
                assert (message_type, sender) == (MessageType.TIMER_EXPIRED, 0)
                expired = TimerExpired.decode(payload)
                if not last < expired.expired <= expired.delivered <= clock.read() + _CLOCKS_APART:
                    wrong.append((last, expired.expired, expired.delivered))
                last = expired.expired
                note["tick"] += 1
                if note["tick"] == TICKS:
                    vp.timers[0].stop()
            for _, sender, payload in vp.take_messages(MESSAGE_SINT):
                stopped = stopped or payload == STOP
                if payload != STOP:
                    note[f"message {sender} {payload.decode()}"] += 1
        for vector in vp.take_vectors():  # requested between our last look and the message to stop
            note[f"vector {vector}"] += 1
        for flag in vp.take_events(EVENT_SINT):  # signalled there, too
            note[f"flag {flag}"] += 1
        while time.thread_time_ns() < 2_000_000 * (vp.index + 1):
            pass
        time.sleep(0.001)  # the kernel's books of a thread are exact once it has been off its processor
        note["runtime"] = vp.runtime

    threads = [vp.run(serve) for vp in vps]
    port.post_message(TO_ROOT, 1, b"ready")
    for thread in threads:
        thread.join()
    os.write(birth.files[0], json.dumps({"notes": notes, "wrong": wrong}).encode())
    return 0


_CLOCKS_APART: Final = 10_000  # 1 ms, in 100 ns: the page's clock is steered after the hypervisor's


def _crash(port: HypercallPort) -> int:
    """The last words of a guest, its message in its own memory."""
    slot = port.map_gpa_pages(0x100, 1)
    text = b"I divided by zero"
    with mmap.mmap(slot.fd, 4096) as memory:
        memory[16 : 16 + len(text)] = text
    registers = {RegisterName.CRASH_P0 + number: 0xDEAD0 + number for number in range(3)}
    registers |= {RegisterName.CRASH_P0 + 3: 0x100 * 4096 + 16, RegisterName.CRASH_P0 + 4: len(text)}
    port.set_vp_registers(registers | {RegisterName.CRASH_CTL: CRASH_NOTIFY | CRASH_MESSAGE}, 0)
    return 3
