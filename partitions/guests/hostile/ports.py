"""Attacks on whoever answers intercepted accesses: our parent's emulators, and the hypervisor that tells it."""

import contextlib
import fcntl
import os
import struct
import time
from typing import Final

from bus.intercept_messages import InterceptAccess, InterceptHeader, PortIntercept, port_instruction
from bus.native import eventfd_signal
from bus.synic import MessageType
from partitions.guests.hostile.scene import Scene
from partitions.guests.hostile.tally import Tally
from partitions.vp.direct_access import DirectAccess
from runtime.abi import HypercallCode, HypercallError

_KNOWN: Final = (0x3F8, 0x3F9, 0x3FA, 0x3FB, 0x3FC, 0x3FD, 0x3FF, 0x60, 0x64, 0x70, 0x71, 0x1F0, 0x1F7)
_KEYBOARD_COMMAND, _PULSES, _WRITE_OUTPUT_PORT = 0x64, 0xF0, 0xD1
_LONG: Final = 2**16
_EXTREMES: Final = (0, 1, 2, 3, 4, 8, 255, 4096, _LONG, 2**32 - 1, 2**63, 2**64 - 1)


def accesses_to_any_port(scene: Scene, tally: Tally) -> None:
    """By the call itself: what no IN or OUT could say, too."""
    rng, call = scene.rng, scene.partition.hypercalls
    while scene.goes_on():
        arguments: dict[str, object] = {
            "vp": rng.choice((0, 0, 0, 0, 1, 2**32 - 1)),
            "port": rng.choice((*_KNOWN, rng.randrange(1 << 16), 1 << 16, 2**64 - 1)),
            "size": rng.choice((1, 1, 2, 4, 0, 3, 8)),
        }
        if rng.random() < 0.5:
            arguments |= {"write": 1, "value": rng.choice((0, 0x5A, 2**32, 2**64 - 1))}
        if rng.random() < 0.3:
            count = rng.choice(_EXTREMES)
            if count == _LONG and rng.random() < 0.95:  # it takes its whole share of its parent for seconds
                count = 255
            arguments |= {"count": count, "gpa": rng.choice((*_EXTREMES, 0x1_0000_0000))}
        try:
            call.call(HypercallCode.ACCESS_PORT, (), **arguments)
        except HypercallError as error:
            tally.met(error.status.name)
        else:
            tally.met("answered")
        tally.evidence = f"the last one: {arguments}"


def interrupted_accesses(scene: Scene, tally: Tally) -> None:
    """As fast as it can: its parent is told of each."""
    rng, accesses = scene.rng, scene.partition.accesses
    while scene.goes_on():
        port = rng.choice(_KNOWN)
        try:
            if rng.random() < 0.5:
                accesses.access_port(0, port, 1)
            else:
                value = rng.randrange(256)
                if port == _KEYBOARD_COMMAND and (value >= _PULSES or value == _WRITE_OUTPUT_PORT):
                    continue  # which would be its own reset, or lead to it
                accesses.access_port(0, port, 1, write=True, value=value)
        except HypercallError as error:
            tally.met(error.status.name)
        else:
            tally.met("answered")
    tally.evidence = f"{tally.made} accesses in a window"


def requests_forged_in_the_page(scene: Scene, tally: Tally) -> None:
    """The direct way: what stands in the page is changed while it is read, and both doorbells are turned."""
    access, rng = scene.partition.accesses, scene.rng
    if not isinstance(access, DirectAccess):
        return
    memory, page = access._slot.memory, access._page
    bells = access._bell, access._parent_bell
    answered = 0
    while scene.goes_on():
        port = PortIntercept(
            InterceptHeader(rng.choice((0, 1, 0xFFFF_FFFF)), rng.randrange(16), InterceptAccess.READ, 0, 2),
            rng.choice((*_KNOWN, 0xFFFF)),
            rng.choice((1, 2, 4)),
            rng.random() < 0.5,
            rng.random() < 0.5,
            port_instruction(size=1, write=False, string=False),
            rng.getrandbits(63),
            rng.getrandbits(63),
            rng.getrandbits(63),
            rng.getrandbits(63),
        ).encode()
        payload = bytearray(rng.choice((port, port, rng.randbytes(128), b"")))
        for _ in range(rng.choice((0, 1, 4))):
            if payload:
                payload[rng.randrange(len(payload))] = rng.randrange(256)
        kind = rng.choice((MessageType.X64_IO_PORT_INTERCEPT, MessageType.GPA_INTERCEPT, 0, 2**32 - 1))
        sequence = page.ask(kind, bytes(payload))
        struct.pack_into("<I", memory, 8, rng.choice((len(payload), 2**32 - 1, 0)))
        eventfd_signal(bells[1])
        memory[64 : 64 + 64] = rng.randbytes(64)  # while it is read, or just after
        tally.made += 1
        tally.evidence = f"sequence {sequence}, type {kind:#x} stand in the page: {memory[:12].hex()}"
        if rng.random() < 0.05:
            flags = fcntl.fcntl(bells[0], fcntl.F_GETFL)
            for bell in bells:
                with contextlib.suppress(BlockingIOError):
                    fcntl.fcntl(bell, fcntl.F_SETFL, flags | os.O_NONBLOCK)
                    os.eventfd_write(bell, 2**64 - 2)
                fcntl.fcntl(bell, fcntl.F_SETFL, flags)
        time.sleep(0.0005)
        answered += page.answer(sequence) is not None
    tally.came_of_it("answered" if answered else "no answer")
