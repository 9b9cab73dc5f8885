"""A successor goes on exactly where its predecessor stopped, wherever that was."""

import contextlib
import random
import struct
from collections.abc import Iterator
from typing import Any, cast
from uuid import UUID

import pytest

from bus import channel_events as events
from bus.channel_message_codec import Version
from bus.channel_server import ChannelServer
from bus.native import PAGE_BYTES
from partitions.stack.saved_state import SLOT_PAGES, SavedState
from partitions.storage.protocol import ChannelProperties, NtStatus, Operation, Packet, ProtocolVersion
from partitions.storage.session import Session, SessionState, SnapshotError, load_session, save_session
from tests.bus.channel_world import World
from tests.bus.ring_pair import READ_INDEX, WRITE_INDEX, ring_pair
from tests.partitions.kept_machine import Guest, Kept, run

# -- the control plane


@pytest.mark.parametrize("seed", range(20))
def test_a_channel_server_is_the_same_after_a_stay_in_saved_state(seed: int) -> None:
    """After every step of a random life, as bytes and back; and it lives on as what it became."""
    rng, world = random.Random(seed), World()
    saved = SavedState(memoryview(bytearray(SLOT_PAGES * PAGE_BYTES)))
    saved.format()
    moves = (
        lambda: world.offer(UUID(int=rng.randrange(1, 3))),
        lambda: world.revoke(rng.randrange(6)),
        lambda: world.create_gpadl(rng.randrange(6), rng.randrange(1, 40)),
        lambda: world.open(rng.randrange(6), rng.randrange(6)),
        lambda: world.close(rng.randrange(6)),
        lambda: world.report(rng.randrange(6), 0),
        world.request_offers,
        *(world.deliver_to_guest, world.deliver_to_host) * 3,
    )
    world.offer(UUID(int=1))
    world.connect(Version.V6_0)
    for _ in range(200):
        rng.choice(moves)()
        state = world.server.to_state()
        saved.save({"guests": [state]})
        world.server = ChannelServer.from_state(saved.load()["guests"][0])
        assert world.server.to_state() == state


class Undisturbed:
    """A guest's whole stay, with a root that lives: what every other stay must come to."""

    def __init__(self) -> None:
        with contextlib.closing(Kept()) as kept:
            self.guest = Guest(kept)
            self.passes, self.state = run(kept, self.guest)
            self.posted, self.ports = kept.posted, kept.ports


@pytest.fixture(scope="module")
def undisturbed() -> Undisturbed:
    return Undisturbed()


def without_times(state: dict[str, Any]) -> dict[str, Any]:
    """An offer's record says since when it is served."""
    return {**state, "offers": [row[:3] for row in state["offers"]]}


def live_through(deaths: Iterator[int | None], undisturbed: Undisturbed) -> int:
    """Roots that die at those moments, until one lives; how many died. The guest must not have noticed."""
    died = 0
    with contextlib.closing(Kept()) as kept:
        guest = Guest(kept)
        for dies_at in deaths:
            _, state = run(kept, guest, dies_at)
            if state is not None:
                break
            died += 1
        assert guest.heard == undisturbed.guest.heard
        assert kept.posted == undisturbed.posted, "a message was posted twice, or never"
        assert kept.ports == undisturbed.ports, "ports are left of the channel"
        assert not kept.mapped
        assert state is not None
        assert undisturbed.state is not None
        assert without_times(state) == without_times(undisturbed.state)
    return died


def test_the_stay_that_is_disturbed_here_takes_every_step(undisturbed: Undisturbed) -> None:
    kinds = [type(one) for one in undisturbed.guest.heard]
    assert kinds == [
        events.Connected,
        events.Offered,
        events.AllOffersDelivered,
        events.GpadlCreated,
        events.Opened,
        events.GpadlTornDown,
        events.Unloaded,
    ]
    assert len(undisturbed.ports) == 3, "the guest's message ports"
    assert undisturbed.passes > 60


def test_a_root_may_die_before_and_after_each_of_its_hypercalls_and_saves(undisturbed: Undisturbed) -> None:
    """Except while it builds the machine: then there is nothing yet to take over."""
    boot = boot_passes()
    died = sum(live_through(iter((at, None)), undisturbed) for at in range(boot + 1, undisturbed.passes + 1))
    assert died == undisturbed.passes - boot


@pytest.mark.parametrize("seed", range(60))
def test_so_may_its_successors_one_after_the_other(seed: int, undisturbed: Undisturbed) -> None:
    rng = random.Random(seed)
    first = rng.randrange(boot_passes() + 1, undisturbed.passes + 1)
    deaths = [first, *(rng.randrange(1, 30) for _ in range(rng.randrange(1, 12))), None]
    assert live_through(iter(deaths), undisturbed) > 0


def boot_passes() -> int:
    """Moments until the first save is complete: before and after each of three ports, three connections, a save."""
    return 2 * 7


# -- the journal


def test_after_each_store_of_an_answer_exactly_what_was_not_answered_is_left_all_around_the_ring() -> None:
    """The stores in their order: the commit word, the index that publishes, the index that releases."""
    rng, journal = random.Random(1), bytearray(64)
    ends: set[int] = set()
    with ring_pair() as pair:
        host = pair.next_host(journal)
        for number in range(1, 400):
            for request in (2 * number, 2 * number + 1):
                pair.guest.send(rng.randbytes(rng.randrange(150)), request, completion=True)
            before = bytes(journal), pair.to_guest.field(WRITE_INDEX), pair.to_host.field(READ_INDEX)
            ((_, _, identity, _, _),) = host.receive_batch(1, 0)
            assert identity == 2 * number
            host.send_completion(rng.randbytes(rng.randrange(150)), identity)
            host.release()
            after = bytes(journal), pair.to_guest.field(WRITE_INDEX), pair.to_host.field(READ_INDEX)
            ends.add(after[2])
            for stores in range(4):
                word, published, released = (
                    after[place] if place < stores else before[place] for place in range(3)
                )
                assert isinstance(word, bytes)
                journal[:] = word
                pair.to_guest.set_field(WRITE_INDEX, cast(int, published))
                pair.to_host.set_field(READ_INDEX, cast(int, released))
                successor = pair.next_host(journal)
                left = [packet[2] for packet in successor.receive_batch(8, 0)]
                answered = [2 * number] if stores >= 2 else []
                assert left == [one for one in (2 * number, 2 * number + 1) if one not in answered]
                if stores >= 2:
                    assert pair.to_host.field(READ_INDEX) == after[2]
                successor.close()
            host = pair.next_host(journal)  # the last one, in whose time all three stand
            ((_, _, identity, _, _),) = host.receive_batch(1, 0)
            host.send_completion(b"", identity)
            host.release()
            assert [packet[2] for packet in pair.guest.receive_batch(8, 0)] == [2 * number, 2 * number + 1]
            pair.guest.release()
    assert len(ends) > 100, "the ring's end was met at few places"


def test_a_word_that_points_out_of_the_ring_releases_nothing() -> None:
    with ring_pair() as pair:
        pair.guest.send(b"x", 1, completion=True)
        for answered in (pair.to_host.size_bytes, pair.to_host.size_bytes + 8, 4, 0xFFFF_FFF8):
            journal = bytearray(64)
            struct.pack_into(
                "<Q", journal, 0, answered << 32
            )  # and the completion ring's index is 0, as it is
            host = pair.next_host(journal)
            assert [packet[2] for packet in host.receive_batch(8, 0)] == [1]
            assert pair.to_host.field(READ_INDEX) == 0
            host.close()


# -- the storage session

SET_UP = (
    Packet(Operation.BEGIN_INITIALIZATION),
    Packet(Operation.QUERY_PROTOCOL_VERSION, body=struct.pack("<HH", ProtocolVersion.BLUE, 0)),
    Packet(Operation.QUERY_PROPERTIES),
    Packet(Operation.END_INITIALIZATION),
)


def new_session() -> Session:
    return Session(ChannelProperties(max_transfer_bytes=1 << 18))


def answers_of(session: Session, packet: Packet) -> Packet:
    answer = session.receive(packet)
    assert isinstance(answer, Packet)
    return answer


@pytest.mark.parametrize("steps", range(1, len(SET_UP) + 1))
def test_the_last_step_of_a_set_up_can_be_replayed_and_no_other(steps: int) -> None:
    """The predecessor had saved where it led to, and died before it published the answer."""
    session = new_session()
    answers = [answers_of(session, packet) for packet in SET_UP[:steps]]
    assert all(answer.status == NtStatus.SUCCESS for answer in answers)
    reached = session.snapshot()
    for place, packet in enumerate(SET_UP):
        successor = Session.restore(session.properties, reached)
        if place != steps:
            assert answers_of(successor, packet).status == NtStatus.INVALID_DEVICE_STATE
        successor = Session.restore(session.properties, reached)
        successor.replaying = True
        answer = answers_of(successor, packet)
        if place == steps - 1:
            assert answer == answers[-1]
            assert successor.snapshot() == reached
        elif place != steps:
            assert answer.status == NtStatus.INVALID_DEVICE_STATE
            assert successor.snapshot() == reached
    if steps < len(SET_UP):  # and the set-up goes on from there
        successor = Session.restore(session.properties, reached)
        successor.replaying = True
        assert all(answers_of(successor, one).status == NtStatus.SUCCESS for one in SET_UP[steps - 1 :])
        assert successor.state is SessionState.READY


def test_each_state_of_a_session_comes_back_from_its_word() -> None:
    session, word = new_session(), memoryview(bytearray(4))
    assert load_session(word) is None
    for packet in (None, *SET_UP):
        if packet is not None:
            answers_of(session, packet)
        save_session(word, session)
        saved = load_session(word)
        assert saved == session.snapshot()
        assert Session.restore(session.properties, saved) == session


def test_a_word_that_no_session_wrote_is_refused() -> None:
    word = memoryview(bytearray(struct.pack("<HH", len(SessionState) + 1, 0)))
    with pytest.raises(SnapshotError, match=f"state {len(SessionState) + 1}"):
        load_session(word)
