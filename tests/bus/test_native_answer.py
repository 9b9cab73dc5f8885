"""`answer` gives back one request at a time; exact lengths bring every byte and no more."""

from collections import deque

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bus.native import PAGE_BYTES, Channel, RingError, RingFull
from tests.bus.ring_pair import COMPLETION, IN_BAND, ring_pair


@settings(max_examples=60, deadline=None)
@given(
    steps=st.lists(
        st.tuples(st.sampled_from(["send", "take", "answer", "skip"]), st.integers(0, 9)), max_size=80
    )
)
def test_what_was_not_answered_is_in_the_ring_for_a_successor(steps: list[tuple[str, int]]) -> None:
    """Any order of sending, taking and answering. Then the host dies: who attaches with its journal finds exactly the
    requests without an answer, in their order, and the guest has the answers to all others, once each."""
    journal = bytearray(64)
    with ring_pair(pages=4) as pair:
        arguments = {
            "outgoing_offset": 5 * PAGE_BYTES,
            "outgoing_bytes": 4 * PAGE_BYTES,
            "incoming_offset": 0,
            "incoming_bytes": 4 * PAGE_BYTES,
            "signal_fd": -1,
            "wait_fd": -1,
        }
        host = Channel(pair.memory, **arguments, journal=journal)  # type: ignore[arg-type]
        unanswered, held, answered, sent = deque[int](), deque[int](), [], 0
        for step, number in steps:
            if step == "send":
                for _ in range(number):
                    pair.guest.send(bytes(8), sent, completion=True)
                    unanswered.append(sent)
                    sent += 1
            elif step == "take":
                held.extend(packet[2] for packet in host.receive_batch(number + 1, 0))
            elif held:
                identity = held.popleft()
                assert identity == unanswered.popleft()
                host.answer(None if step == "skip" else bytes(number), identity)
                answered += [identity] if step == "answer" else []
            else:
                with pytest.raises(ValueError, match="are held"):
                    host.answer(b"", 0)
            assert host.held == len(held)
        host.close()
        successor = Channel(pair.memory, **arguments, journal=journal)  # type: ignore[arg-type]
        assert [packet[2] for packet in successor.receive_batch(1000, 0)] == list(unanswered)
        assert [packet[2] for packet in pair.guest.receive_batch(1000, 0)] == answered
        pair.guest.release()
        successor.close()


def test_an_answer_without_room_changes_nothing() -> None:
    with ring_pair(pages=1) as pair:
        for number in range(3):
            pair.guest.send(b"request!", number, completion=True)
        assert len(pair.host.receive_batch(3, 0)) == 3
        pair.host.answer(bytes(3000), 0)
        with pytest.raises(RingFull):
            pair.host.answer(bytes(3000), 1)
        with pytest.raises(ValueError, match="cannot fit"):
            pair.host.answer(bytes(PAGE_BYTES), 1)
        assert pair.host.held == 2
        assert pair.guest.receive(0) is not None
        pair.guest.release()
        pair.host.answer(bytes(3000), 1)
        pair.host.answer(None, 2)
        assert (pair.host.held, pair.host.has_work) == (0, False)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.binary(max_size=70), st.binary(max_size=70), st.integers(0, 31)), max_size=20))
def test_exact_lengths_bring_what_was_sent_and_the_mark(exchanges: list[tuple[bytes, bytes, int]]) -> None:
    with ring_pair(pages=2) as pair:
        pair.guest.exact_lengths()
        pair.host.exact_lengths()
        for number, (request, reply, mark) in enumerate(exchanges):
            pair.guest.send(request, number, completion=True)
            ((kind, _, identity, _, payload),) = pair.host.receive_batch(4, 0)
            assert (kind, identity, payload) == (IN_BAND, number, request)
            pair.host.answer(reply, identity, mark)
            packet = pair.guest.receive(0)
            assert packet is not None
            assert (packet[0], packet[1] >> 11, packet[2], packet[3]) == (COMPLETION, mark, number, reply)


def test_a_marked_completion_is_no_plain_one_and_stays() -> None:
    with ring_pair() as pair:
        pair.guest.exact_lengths()
        pair.host.exact_lengths()
        pair.guest.send(b"x", 7, completion=True)
        pair.host.receive_batch(1, 0)
        pair.host.answer(b"marked", 8, 3)
        with pytest.raises(RingError):
            pair.guest.exchange(b"y", 8)
        packet = pair.guest.receive(0)
        assert packet is not None
        assert (packet[1] >> 11, packet[2], packet[3]) == (3, 8, b"marked")
        with pytest.raises(ValueError, match="mark"):
            pair.host.answer(b"", 0, 32)


def test_a_peer_may_say_anything_of_its_padding() -> None:
    """Of a packet without a payload nothing can be taken off."""
    with ring_pair() as pair:
        pair.host.exact_lengths()
        for said in range(8):
            pair.guest.send(b"12345678" if said % 2 else b"", 5 | said << 56, completion=True)
            ((_, _, identity, _, payload),) = pair.host.receive_batch(1, 0)
            assert identity == 5
            assert payload == (b"12345678"[: 8 - said] if said % 2 else b"")
            pair.host.release()
