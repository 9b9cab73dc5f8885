"""Waiting: every kind ends when it should, loses no wake-up, and lets Ctrl-C and close() through."""

import mmap
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable

import pytest

from bus.native import PAGE_BYTES, Channel, RingClosed, RingFull, Waiting, flag_set
from tests.bus.ring_pair import (
    INTERRUPT_MASK,
    PENDING_SEND_SZ,
    READ_INDEX,
    RingPair,
    padded,
    ring_pair,
    rung,
)
from tests.bus.waiting_thread import PATIENCE_S, ended, started
from tests.patience import until

MODES = ["spin", "adaptive", "block"]
LONG_NS = 60_000_000_000  # a wait that must have been ended by something else


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("bells", [True, False])
def test_a_timeout_passes_and_leaves_the_channel_usable(mode: str, bells: bool) -> None:
    with ring_pair(waiting=Waiting(mode), bells=bells) as pair:
        started_ns = time.monotonic_ns()
        assert pair.host.receive(3_000_000) is None
        assert pair.host.receive_batch(4, 1_000_000) == []
        assert pair.host.receive_payloads(4, 1_000_000) == []
        assert pair.host.receive_into(bytearray(8), 1_000_000) == -1
        assert not pair.host.wait_readable(1_000_000)
        assert time.monotonic_ns() - started_ns >= 7_000_000
        pair.guest.send(b"late", 1)
        assert pair.host.receive(LONG_NS) == (6, 0, 1, padded(b"late"))


@pytest.mark.parametrize("mode", MODES)
def test_a_waiter_is_woken_by_a_packet(mode: str) -> None:
    with ring_pair(waiting=Waiting(mode)) as pair:
        got: list[object] = []
        thread = started(lambda: got.append(pair.host.receive()))
        time.sleep(0.02)
        pair.guest.send(b"news", 7)
        assert ended(thread)
        assert got == [(6, 0, 7, padded(b"news"))]


@pytest.mark.parametrize("mode", MODES)
def test_a_writer_is_woken_by_space_and_takes_its_wish_back(mode: str) -> None:
    with ring_pair(waiting=Waiting(mode)) as pair:
        while pair.guest.send_many([bytes(100)]):
            pass
        assert not pair.guest.wait_writable(2048, 2_000_000)
        assert pair.to_host.field(PENDING_SEND_SZ) == 0
        done: list[bool] = []
        thread = started(lambda: done.append(pair.guest.wait_writable(2048)))
        time.sleep(0.02)
        while pair.host.receive(0):
            pass
        assert ended(thread)
        assert done == [True]
        assert pair.to_host.field(PENDING_SEND_SZ) == 0
        pair.guest.send(bytes(2048 - 24))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("wait", [Channel.receive, lambda channel: channel.exchange(b"?", 1)])
def test_close_by_another_thread_ends_a_wait(mode: str, wait: Callable[[Channel], object]) -> None:
    with ring_pair(waiting=Waiting(mode)) as pair:
        outcomes: list[BaseException] = []

        def receive() -> None:
            try:
                wait(pair.guest)
            except RingClosed as closed:
                outcomes.append(closed)

        thread = started(receive)
        time.sleep(0.02)
        pair.guest.close()
        assert ended(thread)
        assert len(outcomes) == 1
        with pytest.raises(RingClosed):
            pair.guest.send(b"x")
        with pytest.raises(RingClosed):
            pair.guest.kick()
        pair.guest.close()  # again: nothing


def test_close_ends_a_wait_whose_doorbell_a_peer_keeps_emptying() -> None:
    with ring_pair(waiting=Waiting("block")) as pair:
        stop = threading.Event()

        def steal() -> None:
            while not stop.is_set():
                rung(pair.guest_doorbell)

        thief = started(steal)
        outcome: list[str] = []

        def receive() -> None:
            try:
                pair.guest.receive()
            except RingClosed:
                outcome.append("closed")

        thread = started(receive)
        time.sleep(0.02)
        pair.guest.close()
        stop.set()
        assert ended(thief)
        assert ended(thread)
        assert outcome == ["closed"]


def test_close_lets_go_of_the_memory() -> None:
    memory = mmap.mmap(-1, 4 * PAGE_BYTES)
    channel = Channel(
        memory,
        outgoing_offset=0,
        outgoing_bytes=PAGE_BYTES,
        incoming_offset=2 * PAGE_BYTES,
        incoming_bytes=PAGE_BYTES,
        signal_fd=-1,
        wait_fd=-1,
        reset=True,
    )
    with pytest.raises(BufferError):
        memory.close()
    channel.close()
    memory.close()


@pytest.mark.parametrize("mode", MODES)
def test_a_reader_and_a_writer_of_one_end_sleep_on_one_doorbell(mode: str) -> None:
    """Either may be the one that sleeps on the doorbell; what rings for the one must not be lost for the other."""
    with ring_pair(waiting=Waiting(mode)) as pair:
        while pair.guest.send_many([bytes(100)]):
            pass
        events: list[str] = []

        def read() -> None:
            pair.guest.receive()
            events.append("read")

        def write() -> None:
            pair.guest.wait_writable(1024)
            events.append("written")

        for first, second in ((read, write), (write, read)):
            events.clear()
            threads = [started(first)]
            time.sleep(0.01)
            threads.append(started(second))
            time.sleep(0.01)
            while pair.host.receive(0):
                pass
            pair.host.release()
            assert ended(threads[0 if first is write else 1])
            assert events == ["written"]
            pair.host.send(b"data")
            assert ended(threads[0 if first is read else 1])
            assert events == ["written", "read"]
            while pair.guest.send_many([bytes(100)]):
                pass


def test_a_second_receiver_is_refused_while_one_waits() -> None:
    with ring_pair(waiting=Waiting("block")) as pair:
        thread = started(pair.host.receive)
        until(lambda: pair.to_host.field(INTERRUPT_MASK) == 0)  # it is there, and about to sleep
        with pytest.raises(RuntimeError, match="another thread is receiving"):
            pair.host.receive(0)
        pair.host.send(b"the other direction is free")
        pair.guest.send(b"go")
        assert ended(thread)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("call", ["receive()", "exchange(b'', 1)", "wait_writable(4000)"])
def test_ctrl_c_ends_every_wait(mode: str, call: str) -> None:
    program = f"""
import mmap, os
from bus.native import Channel, Waiting
bells = [os.eventfd(0, os.EFD_NONBLOCK) for _ in range(2)]
channel = Channel(mmap.mmap(-1, 16384), outgoing_offset=0, outgoing_bytes=4096, incoming_offset=8192,
    incoming_bytes=4096, signal_fd=bells[0], wait_fd=bells[1], waiting=Waiting({mode!r}), reset=True)
channel.send(bytes(400))
try:
    print("waiting", flush=True)
    channel.{call}
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "waiting\n"
        time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=PATIENCE_S)[0] == "interrupted\n"
        assert process.returncode == 0


def test_other_threads_run_python_while_one_waits() -> None:
    for mode in MODES:
        with ring_pair(waiting=Waiting(mode)) as pair:
            thread = started(pair.host.receive)
            assert sum(range(100_000)) == 4_999_950_000
            pair.guest.send(b"end")
            assert ended(thread)


@pytest.mark.parametrize("mode", ["adaptive", "block"])
def test_event_flag_is_taken_before_the_last_look(mode: str) -> None:
    """A flag left set would keep the hypervisor from raising the line again; a flag taken too late, swallow news."""
    bell = os.eventfd(0, os.EFD_NONBLOCK)
    sief = mmap.mmap(-1, PAGE_BYTES)
    memory = mmap.mmap(-1, 4 * PAGE_BYTES)
    flag = 2 * 2048 + 9

    def end(outgoing: int, incoming: int, mine: bool) -> Channel:
        return Channel(
            memory,
            outgoing_offset=outgoing,
            outgoing_bytes=PAGE_BYTES,
            incoming_offset=incoming,
            incoming_bytes=PAGE_BYTES,
            signal_fd=-1,
            wait_fd=bell if mine else -1,
            waiting=Waiting(mode),
            flags=sief if mine else None,
            flag=flag if mine else -1,
            reset=mine,
        )

    target, sender = end(0, 2 * PAGE_BYTES, True), end(2 * PAGE_BYTES, 0, False)
    assert flag_set(sief, flag)  # left over: nobody will ring for it again
    got: list[object] = []

    def receive_all() -> None:
        while len(got) < 200:
            got.append(target.receive())

    thread = started(receive_all)
    for i in range(200):
        sender.send(b"x", i)
        while len(got) <= i:
            if flag_set(sief, flag):  # what the router does for a kick
                os.eventfd_write(bell, 1)
            time.sleep(0)
    assert ended(thread)
    assert len(got) == 200
    target.close()
    sender.close()
    os.close(bell)


@pytest.mark.parametrize("mode", MODES)
def test_every_packet_arrives_across_two_processes(mode: str) -> None:
    """Both directions at once, rings of one page, every wrap: the child echoes what it gets."""
    count = 20_000 if mode != "block" else 4000
    with ring_pair(waiting=Waiting(mode)) as pair:
        child = os.fork()
        if child == 0:
            try:
                for _ in range(count):
                    packet = pair.host.receive()
                    assert packet is not None
                    pair.host.send(packet[3], packet[2])
                pair.host.release()
            finally:
                os._exit(0)
        sent = received = 0
        while received < count:
            try:
                while sent < count and sent - received < 40:
                    pair.guest.send(sent.to_bytes(8, "little") * (1 + sent % 5), sent)
                    sent += 1
            except RingFull:
                pass
            for kind, flags, transaction_id, _, payload in pair.guest.receive_batch(64):
                assert (kind, flags, transaction_id) == (6, 0, received)
                assert payload == received.to_bytes(8, "little") * (1 + received % 5)
                received += 1
            pair.guest.release()
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def echo_forever(pair: RingPair) -> None:
    packet = pair.host.reply_and_receive(None, 0)
    while packet is not None and packet[2] != 2**64 - 1:
        packet = pair.host.reply_and_receive(packet[3], packet[2])
    pair.host.send_completion(b"", 2**64 - 1)


def test_no_wake_up_is_lost_over_a_hundred_thousand_sleeps() -> None:
    """Both ends sleep at once, every time; a lost wake-up hangs the exchange, and the alarm ends the test."""
    exchanges = 50_000  # each puts both ends to sleep

    def hangs(*_: object) -> None:
        raise AssertionError("a wake-up was lost")

    before = signal.signal(signal.SIGALRM, hangs)
    with ring_pair(waiting=Waiting("block")) as pair:
        child = os.fork()
        if child == 0:
            try:
                echo_forever(pair)
            finally:
                os._exit(0)
        try:
            for i in range(exchanges):
                if i % 1000 == 0:
                    signal.alarm(PATIENCE_S)
                assert pair.guest.exchange(b"12345678", i) == b"12345678"
            assert pair.guest.exchange(b"", 2**64 - 1) == b""
        finally:
            signal.alarm(0)
            signal.signal(signal.SIGALRM, before)
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        assert pair.guest.statistics()["waits_blocked"] > exchanges // 2
        assert pair.to_host.field(READ_INDEX) % 8 == 0


def test_waiting_says_what_it_accepts() -> None:
    assert Waiting().mode == "adaptive"
    assert Waiting("block", spin_ns=0, yield_ns=0).mode == "block"
    for mode, spin_ns, yield_ns in (("busy", 0, 0), ("adaptive", -1, 0), ("adaptive", 0, 10**9)):
        with pytest.raises(ValueError, match="expected"):
            Waiting(mode, spin_ns, yield_ns)
