"""Doorbells: rung when somebody sleeps, of use to an event loop, and no lever in a hostile peer's hands."""

import os
import select
import threading
import time

import pytest

from bus.native import Waiting
from tests.bus.ring_pair import INTERRUPT_MASK, WRITE_INDEX, ring_pair, rung
from tests.bus.waiting_thread import PATIENCE_S, ended, started
from tests.patience import until


def test_only_a_sleeper_asks_for_an_interrupt() -> None:
    with ring_pair(waiting=Waiting("block")) as pair:
        assert pair.to_host.field(INTERRUPT_MASK) != 0
        pair.guest.send(b"nobody sleeps")
        assert rung(pair.host_doorbell) == 0
        assert pair.host.receive() is not None
        assert pair.host.receive(1_000_000) is None
        assert pair.to_host.field(INTERRUPT_MASK) != 0


def test_arm_is_for_event_loops() -> None:
    """Armed, the next packet makes wait_fd readable; arming again empties it; data makes arming fail."""
    with ring_pair() as pair:
        assert pair.host.arm()
        assert select.select([pair.host_doorbell], [], [], 0)[0] == []
        pair.guest.send(b"x")
        assert select.select([pair.host_doorbell], [], [], PATIENCE_S)[0] == [pair.host_doorbell]
        assert not pair.host.arm()
        assert pair.to_host.field(INTERRUPT_MASK) != 0
        assert pair.host.receive(0) is not None
        pair.host.release()
        assert pair.host.arm()
        assert select.select([pair.host_doorbell], [], [], 0)[0] == []
        pair.host.disarm()
        pair.guest.send(b"y")
        assert rung(pair.host_doorbell) == 0


def test_an_event_loop_is_woken_by_the_doorbell_and_for_good_by_a_close() -> None:
    with ring_pair() as pair:
        loop = select.poll()
        loop.register(pair.host.fileno(), select.POLLIN)
        for _ in range(3):
            assert pair.host.arm()
            assert loop.poll(0) == []
            pair.guest.send(b"x")
            assert loop.poll(PATIENCE_S * 1000) == [(pair.host.fileno(), select.POLLIN)]
            assert pair.host.receive(0) is not None
            pair.host.release()
        assert pair.host.arm()
        assert loop.poll(0) == []
        closer = threading.Timer(0.05, pair.host.close)
        closer.start()
        assert loop.poll(PATIENCE_S * 1000) != []
        closer.join()
        rung(pair.host_doorbell)  # a peer that takes the ring out of the doorbell does not undo the close
        assert loop.poll(0) != []


def test_an_end_without_a_doorbell_has_nothing_for_event_loops() -> None:
    with ring_pair(bells=False) as pair, pytest.raises(ValueError, match="doorbell"):
        pair.host.fileno()


def test_kick_rings_whatever_the_mask_says() -> None:
    with ring_pair() as pair:
        pair.guest.kick()
        pair.guest.kick()
        assert rung(pair.host_doorbell) == 2


def test_a_peers_full_doorbell_never_blocks_a_sender() -> None:
    with ring_pair() as pair:
        os.eventfd_write(pair.host_doorbell, 2**64 - 2)
        pair.to_host.set_field(INTERRUPT_MASK, 0)
        pair.guest.send(b"x")
        pair.guest.kick()
        assert rung(pair.host_doorbell) == 2**64 - 2


def test_a_sender_that_a_hostile_peer_blocks_stops_nobody_else_and_is_freed_by_close() -> None:
    with ring_pair() as pair:
        os.set_blocking(pair.host_doorbell, True)  # the peer may do so: it is the same open file
        os.eventfd_write(pair.host_doorbell, 2**64 - 2)
        pair.to_host.set_field(INTERRUPT_MASK, 0)
        thread = started(lambda: pair.guest.send(b"x"))
        until(lambda: pair.to_host.field(WRITE_INDEX) != 0)  # all that is left to do is to ring
        time.sleep(0.05)
        assert thread.is_alive()
        pair.guest.close()
        assert ended(thread)
        os.set_blocking(pair.host_doorbell, False)
