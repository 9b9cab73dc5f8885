"""Interrupts, timers and clocks of real partitions: a broker process, a guest with four VPs, the test as root."""

import json
import os
import time
from collections import Counter
from collections.abc import Sequence
from typing import Final

import pytest

from bus import native
from bus.memory import MemorySlot
from runtime.abi import ALL_PRIVILEGES, PortType, RegisterName, Route
from runtime.hypervisor.reference_clock import is_reliable
from tests.patience import WAIT_S
from tests.runtime import multi_vp_guest as guest
from tests.runtime.broker_process import SINT, BrokerProcess, broker_process, wait_readable, wait_until

_VPS: Final = 4
_AGREE: Final = 10_000  # 1 ms, in 100 ns: how far two clocks may be apart that are read one after the other


def _spawn(broker: BrokerProcess, do: str, vps: int = 1, files: Sequence[int] = ()) -> int:
    port = broker.port
    child = port.create_partition()
    port.deposit(child, 400)
    port.set_privileges(child, ALL_PRIVILEGES)
    port.initialize(child)
    for vp in range(vps):
        port.create_vp(vp, child)
    port.set_program(child, "tests.runtime.multi_vp_guest", f"guest{child}", {"do": do}, files)
    port.create_port(child, child, PortType.MESSAGE, SINT)
    port.connect_port(guest.TO_ROOT, 1, child, partition=child)
    return child


def test_each_vp_gets_exactly_what_is_aimed_at_it() -> None:
    """Messages, events by call and by route, vectors of the parent, timers by message and by vector."""
    with broker_process() as broker:
        port = broker.port
        reader, writer = os.pipe()
        child = _spawn(broker, "serve", _VPS, [writer])
        os.close(writer)
        for vp in range(_VPS):
            message, event = 0x100 + vp, 0x200 + vp
            port.create_port(message, 1, PortType.MESSAGE, guest.MESSAGE_SINT, vp, partition=child)
            port.connect_port(message, child, message)
            args = {"partition": child, "base_flag": 10 * vp, "flag_count": 4}
            port.create_port(event, 1, PortType.EVENT, guest.EVENT_SINT, vp, **args)
            port.connect_port(event, child, event)
        port.start_vp(child)
        assert broker.message() == (child, b"ready")
        for vp in range(_VPS):
            for number in range(3 + vp):
                port.post_message(0x100 + vp, 1, f"m{number}".encode())
            port.signal_event(0x200 + vp, vp)
            port.assert_interrupt(child, vp, 0x90 + vp)
        port.move_port(0x103, 0, child)  # its next message goes to VP 0
        port.post_message(0x103, 1, b"moved")
        for vp in range(_VPS - 1):
            port.post_message(0x100 + vp, 1, guest.STOP)
        port.move_port(0x103, 3, child)
        port.post_message(0x103, 1, guest.STOP)
        assert broker.event("partition.exited", id=child)["code"] == 0
        with open(reader) as file:
            report = json.load(file)
        assert report["wrong"] == []
        assert len(report["notes"]) == _VPS
        for name, notes in report["notes"].items():
            vp = int(name)
            assert notes.pop("tick") >= guest.TICKS
            expected = Counter({f"message {0x100 + vp} m{number}": 1 for number in range(3 + vp)})
            expected[f"flag {11 * vp}"] = 1
            if vp == 0:
                expected[f"message {0x103} moved"] = 1
            mine = {0x50, 0x60, 0x71, 0x90 + vp, guest.TIMER_VECTOR + vp}
            vectors = {int(key.split()[1]) for key in notes if key.startswith("vector")}
            assert vectors <= mine
            assert {0x90 + vp, guest.TIMER_VECTOR + vp} <= vectors
            assert notes[f"vector {0x90 + vp}"] == notes[f"vector {guest.TIMER_VECTOR + vp}"] == 1
            runtime = notes.pop("runtime")
            assert runtime >= 20_000 * (vp + 1)  # 2 ms a VP, and one more each
            assert {key: count for key, count in notes.items() if not key.startswith("vector")} == expected


def test_a_threads_time_is_that_of_its_vp_and_only_a_thread_of_its_own_counts() -> None:
    with broker_process() as broker:
        port = broker.port
        root = broker.root_process.pid
        runtime = [RegisterName.VP_RUNTIME]
        assert port.get_vp_registers(runtime, 0)[0] >= 0
        port.set_vp_registers({RegisterName.VP_THREAD: root}, 0)
        assert port.get_vp_registers([RegisterName.VP_THREAD], 0) == [root]
        with pytest.raises(Exception, match="INVALID_REGISTER_VALUE"):
            port.set_vp_registers({RegisterName.VP_THREAD: os.getpid()}, 0)  # a real one, of another process


def test_a_guests_last_words_become_an_event() -> None:
    with broker_process() as broker:
        child = _spawn(broker, "crash")
        broker.port.start_vp(child)
        crashed = broker.event("partition.crashed", id=child)
        assert crashed["parameters"][:3] == [0xDEAD0, 0xDEAD1, 0xDEAD2]
        assert crashed["message"] == "I divided by zero"
        assert broker.event("partition.exited", id=child)["code"] == 3


# -- the clock -------------------------------------------------------------------------------------------------


def _register(broker: BrokerProcess) -> int:
    return broker.port.get_vp_registers([RegisterName.TIME_REF_COUNT], 0)[0]


def test_the_reference_page_agrees_with_the_register_and_never_goes_back() -> None:
    """Read without pause over a refresh of the page, the register now and then."""
    if not is_reliable():
        pytest.skip("this host does not vouch for its TSC, so the page is not valid")
    with broker_process() as broker:
        time.sleep(0.01)  # the broker's measurement of the TSC takes a moment
        fd = broker.port.claim_reference_page()
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.pwrite(fd, b"x", 0)
        with MemorySlot.from_fd(fd, 0, 1, writable=False) as page:
            last, sequences = 0, set[bytes]()
            began = time.monotonic()
            while (lasted := time.monotonic() - began) < 1.3 or len(sequences - {bytes(4)}) < 2:
                assert lasted < WAIT_S, "it is never written anew"
                before, newest = _register(broker), None
                for _ in range(1_000):
                    now = native.reference_time(page.memory)
                    if now is not None:  # it is being written, on a busy host perhaps for all this time
                        assert now >= last
                        last = newest = now
                sequences.add(bytes(page.memory[:4]))
                assert newest is None or before - _AGREE <= newest <= _register(broker) + _AGREE


# -- accounting ------------------------------------------------------------------------------------------------


def _come_to(broker: BrokerProcess, child: int, port: int, **wanted: int) -> None:
    """So they are counted, each as one thing. The router counts what it has done, not at once."""

    def counted() -> bool:
        counts = broker.port.get_port_counts(port, child)
        told = {"sent": counts.sent, "merged": counts.merged, "suppressed": counts.suppressed}
        adds_up = counts.sent == counts.merged + counts.suppressed + counts.delivered + counts.pending
        return adds_up and wanted.items() <= told.items()

    wait_until(counted)


def test_the_routers_events_are_accounted_for_masked_or_not() -> None:
    """Our own port, so that we mask, look and clear; a child that kicks nothing. We hold its kick through a route
    of our own making: the child's connection is claimed by nobody, so we send by a second child's."""
    with broker_process() as broker:
        port = broker.port
        child = broker.spawn("answer events", events=Route.BROKER)
        assert broker.message() == (child, b"ready")
        ours = port.claim_port_doorbell(0x100 + child)
        theirs = port.claim_connection_doorbell(0x200 + child)
        for _ in range(5):
            native.eventfd_signal(theirs.fd)
            wait_readable(ours.fd)
            os.read(ours.fd, 8)
            native.flags_take_all(broker.sief, SINT)
        _come_to(broker, 1, 0x100 + child, sent=5, merged=0, suppressed=0)
        native.eventfd_signal(theirs.fd)
        _come_to(broker, 1, 0x100 + child, sent=6)
        native.eventfd_signal(theirs.fd)  # the flag stands: it merges
        _come_to(broker, 1, 0x100 + child, merged=1)
        native.flags_take_all(broker.sief, SINT)
        os.read(ours.fd, 8)
        port.mask_sint(0, SINT)
        native.eventfd_signal(theirs.fd)
        _come_to(broker, 1, 0x100 + child, suppressed=1)
        port.enable_synic(0, [SINT])
        wait_readable(ours.fd)  # what came while it was masked is told now
        assert native.flags_take_all(broker.sief, SINT) == [child]
        _come_to(broker, child, 0x10, sent=8, merged=0, suppressed=0)
