"""Stream sockets: who is connected with whom, within which bounds, and what is left of what did not come about."""

import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID, uuid4

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from bus.channel_actions import ConnectStream
from bus.guids import vsock_service
from partitions.machine_plan import AttachmentPlan
from partitions.stack.offered_device import OfferedDevice
from partitions.streams import desk as desk_module
from partitions.streams.desk import CONNECTING_MAX, STREAMS_MAX, StreamDesk, end_remains
from partitions.streams.device import StreamDevice, remains
from partitions.streams.relay import NoStream, StreamRelay
from partitions.streams.wire import silo_of
from runtime.abi import Route


@dataclass
class Bus:
    """A guest as the desk sees it; opens what `opens` says."""

    name: str
    opens: Callable[[StreamDevice], bool] = lambda device: True
    offered: dict[str, tuple[UUID, StreamDevice]] = field(default_factory=dict)
    refused: list[ConnectStream] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    relays: list[StreamRelay | NoStream] = field(default_factory=list)  # that nobody runs

    def offer(self, instance: UUID, device: OfferedDevice, plan: AttachmentPlan) -> None:
        assert isinstance(device, StreamDevice)
        self.offered[device.name] = instance, device
        if self.opens(device):
            self.relays.append(device.open_for(None, None, None, None, None))  # type: ignore[arg-type]

    def remove(self, device: str) -> None:
        self.removed.append(device)

    def refuse_stream(self, request: ConnectStream) -> None:
        self.refused.append(request)


def run_desk(main: Callable[[StreamDesk, Bus, Bus], Any], dials: bool = True) -> None:
    """`main` with a desk and two guests, on a clock that jumps."""
    sockets: list[socket.socket] = []

    async def dial(guest: str, service: str) -> socket.socket | None:
        if not dials:
            return None
        ours, theirs = socket.socketpair()
        sockets.append(theirs)
        return ours

    async def body() -> None:
        first, second = Bus("first"), Bus("second")
        async with trio.open_nursery() as nursery:
            desk = StreamDesk(
                nursery, lambda: [first, second], dial, lambda kind, **more: None, Route.DIRECT,
                {"first": True, "second": True},
            )  # fmt: skip
            await main(desk, first, second)
            nursery.cancel_scope.cancel()
        for bus in (first, second):
            for _, device in bus.offered.values():
                device.close()
            for relay in bus.relays:
                assert isinstance(relay, StreamRelay)
                relay._end.close(finished=True)
        for sock in sockets:
            sock.close()

    trio.run(body, clock=trio.testing.MockClock(autojump_threshold=0.02))


def request(silo: str | None = None, port: int = 5000) -> ConnectStream:
    return ConnectStream(uuid4(), vsock_service(port), None if silo is None else silo_of(silo))


def test_a_guest_is_connected_with_the_host_and_with_another_guest_that_opens() -> None:
    async def main(desk: StreamDesk, first: Bus, second: Bus) -> None:
        to_host, to_second = request(), request("second")
        desk.asked(first, to_host)
        await trio.sleep(1)
        ((instance, device),) = first.offered.values()
        assert (instance, device.interface, device.accept) == (to_host.endpoint, to_host.service, False)
        desk.asked(first, to_second)
        await trio.sleep(1)
        ((_, listened),) = second.offered.values()
        assert (listened.interface, listened.accept) == (to_second.service, True)
        assert [one for one, _ in first.offered.values()] == [to_host.endpoint, to_second.endpoint]
        assert first.refused == second.refused == []

    run_desk(main)


@pytest.mark.parametrize("why", ["nobody on the host", "no such guest", "it does not open"])
def test_a_connection_that_nobody_takes_is_refused_and_leaves_nothing(why: str) -> None:
    async def main(desk: StreamDesk, first: Bus, second: Bus) -> None:
        second.opens = lambda device: False
        asked = {"nobody on the host": request(), "no such guest": request("third")}.get(
            why, request("second")
        )
        desk.asked(first, asked)
        await trio.sleep(desk_module.ACCEPT_S_MAX + 1)
        assert first.refused == [asked]
        assert not first.offered
        assert list(second.offered) == second.removed

    run_desk(main, dials=False)


def test_connections_of_a_guest_are_bounded_and_another_guest_does_not_notice() -> None:
    async def main(desk: StreamDesk, first: Bus, second: Bus) -> None:
        for _ in range(STREAMS_MAX + 5):
            desk.asked(first, request())
            await trio.testing.wait_all_tasks_blocked(0.001)
        assert len(first.offered) == STREAMS_MAX
        assert len(first.refused) == 5
        for _ in range(CONNECTING_MAX + 3):  # at once
            desk.asked(second, request())
        assert len(second.refused) == 3

    run_desk(main)


def test_what_the_guest_asked_for_and_does_not_open_is_taken_away() -> None:
    async def main(desk: StreamDesk, first: Bus, second: Bus) -> None:
        first.opens = lambda device: False
        desk.asked(first, request())
        await trio.sleep(desk_module.OPEN_S_MAX + 1)
        assert first.removed == list(first.offered)

    run_desk(main)


@given(st.binary(max_size=90))
def test_whatever_a_program_of_the_host_says_it_is_connected_or_its_socket_is_closed(words: bytes) -> None:
    async def main(desk: StreamDesk, first: Bus, second: Bus) -> None:
        ours, theirs = socket.socketpair()
        theirs.sendall(words)
        theirs.shutdown(socket.SHUT_WR)
        with trio.fail_after(60):
            await desk.serve_host("first", ours)
        if not first.offered:
            assert ours.fileno() < 0
        theirs.close()

    run_desk(main)


def test_a_program_of_the_host_reaches_a_guest_by_port_or_guid() -> None:
    async def main(desk: StreamDesk, first: Bus, second: Bus) -> None:
        for words, service in (
            (b"CONNECT 5000\n", vsock_service(5000)),
            (b"CONNECT %s\n" % str(UUID(int=7)).encode(), UUID(int=7)),
        ):
            ours, theirs = socket.socketpair()
            theirs.sendall(words + b"not the desk's")
            await desk.serve_host("first", ours)
            device = list(first.offered.values())[-1][1]
            assert (device.interface, device.accept) == (service, True)
            theirs.close()

    run_desk(main)


def test_a_predecessors_streams_are_known_by_their_names_and_taken_away() -> None:
    guests = [
        {
            "offers": [[1, "disk0", b"", []], [2, "stream:7", b"", []]],
            "withheld": [["stream:9", b"", [], "", 1]],
        }
    ]
    found = remains(guests)
    assert set(found) == {"stream:7", "stream:9"}
    bus = Bus("first")
    end_remains([bus], found)
    assert set(bus.removed) == set(found)
