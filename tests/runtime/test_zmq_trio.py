"""zmq sockets under trio: no lost wake-up, no waiting where none was promised, clean ends."""

import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import trio
import trio.testing
import zmq

from runtime.machine.zmq_trio import FRAMES_MAX, PeerGone, TrioSocket

PATIENCE_SECONDS = 60.0


@contextlib.asynccontextmanager
async def sockets(*kinds: int, options: dict[int, int] | None = None) -> AsyncIterator[list[TrioSocket]]:
    """Sockets of one context with their pumps; the first is bound, the others are connected to it."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    try:
        with trio.fail_after(PATIENCE_SECONDS):
            async with trio.open_nursery() as nursery:
                made = []
                for position, kind in enumerate(kinds):
                    socket = context.socket(kind)
                    if kind == zmq.ROUTER:
                        socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
                    for option, value in (options or {}).items():
                        socket.setsockopt(option, value)
                    if position == 0:
                        socket.bind(
                            "inproc://test" if kind == zmq.PAIR else f"ipc://@partvisor-{id(context)}"
                        )
                    else:
                        socket.connect(
                            "inproc://test" if kind == zmq.PAIR else f"ipc://@partvisor-{id(context)}"
                        )
                    made.append(TrioSocket(socket))
                    await nursery.start(made[-1].pump)
                yield made
                for trio_socket in made:
                    trio_socket.close()
    finally:
        context.destroy(linger=0)


def run(test: Callable[[], object]) -> None:
    trio.run(test)  # type: ignore[arg-type]


def test_no_message_waits_while_many_tasks_send_and_receive_on_one_socket() -> None:
    """The case in which edges get lost: several tasks on one socket, each operation swallowing the edge that
    another waits for. It ends only if every message arrives, and each arrives once."""
    messages, tasks = 300, 8

    async def main() -> None:
        async with sockets(zmq.DEALER, zmq.DEALER, options={zmq.SNDHWM: 4, zmq.RCVHWM: 4}) as (left, right):
            received: list[bytes] = []
            echoed: list[bytes] = []

            async def send(number: int) -> None:
                for count in range(messages):
                    await left.send([b"%d %d" % (number, count)])

            async def echo() -> None:
                while True:
                    (message,) = await right.receive()
                    received.append(message)
                    await right.send([message])

            async def collect(scope: trio.CancelScope) -> None:
                while True:
                    echoed.extend(await left.receive())
                    if len(echoed) == messages * tasks:
                        scope.cancel()

            async with trio.open_nursery() as nursery:
                for number in range(tasks):
                    nursery.start_soon(send, number)
                    nursery.start_soon(echo)
                    nursery.start_soon(collect, nursery.cancel_scope)
            wanted = sorted(
                b"%d %d" % (number, count) for number in range(tasks) for count in range(messages)
            )
            assert sorted(received) == wanted
            assert sorted(echoed) == wanted

    run(main)


def test_an_operation_that_fails_wakes_those_whose_edge_it_swallowed() -> None:
    """A receiver is parked; sending on the same socket, which reads its commands, must wake it."""

    async def main() -> None:
        async with sockets(zmq.PAIR, zmq.PAIR) as (left, right):
            got: list[bytes] = []

            async def receive() -> None:
                got.extend(await left.receive())

            async with trio.open_nursery() as nursery:
                nursery.start_soon(receive)
                await trio.testing.wait_all_tasks_blocked()
                assert right.try_send([b"x"])
                assert left.try_send([b"y"])  # swallows left's edge
            assert got == [b"x"]

    run(main)


@pytest.mark.parametrize("there_is_a_message", [False, True])
def test_a_receive_wakes_the_sender_whose_edge_it_swallowed(there_is_a_message: bool) -> None:
    """A sender is parked on a full socket. Its peer makes room; before the pump has seen that, a receive on
    the sender's socket, whether it finds something or not, reads the command which says so."""

    async def main() -> None:
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        try:
            near, far = context.socket(zmq.PAIR), context.socket(zmq.PAIR)
            for plain in (near, far):
                plain.setsockopt(zmq.SNDHWM, 2)
                plain.setsockopt(zmq.RCVHWM, 2)
            near.bind("inproc://edges")
            far.connect("inproc://edges")
            socket = TrioSocket(near)
            with trio.fail_after(PATIENCE_SECONDS):
                async with trio.open_nursery() as nursery:
                    while socket.try_send([b"fill"]):
                        pass
                    nursery.start_soon(socket.send, [b"waited"])
                    await trio.testing.wait_all_tasks_blocked()
                    assert socket.statistics()["tasks_sending"] == 1
                    drained = []
                    with contextlib.suppress(zmq.Again):
                        while True:
                            drained.append(far.recv(zmq.NOBLOCK))
                    if there_is_a_message:
                        far.send(b"hello", zmq.NOBLOCK)
                    with trio.move_on_after(0.01):  # no pump runs: only this can wake the sender
                        await socket.receive()
            assert far.recv(zmq.NOBLOCK) == b"waited"
            socket.close()
        finally:
            context.destroy(linger=0)

    run(main)


def test_sending_waits_for_room_and_only_then() -> None:
    async def main() -> None:
        async with sockets(zmq.PAIR, zmq.PAIR, options={zmq.SNDHWM: 2, zmq.RCVHWM: 2}) as (left, right):
            sent = 0
            while left.try_send([b"%d" % sent]):
                sent += 1
            assert sent >= 2
            with trio.move_on_after(0.05) as blocked:
                await left.send([b"too much"])
            assert blocked.cancelled_caught
            for number in range(sent):
                assert await right.receive() == [b"%d" % number]
            await left.send([b"fits"])
            assert await right.receive() == [b"fits"]

    run(main)


def test_a_cancelled_receive_loses_no_message() -> None:
    async def main() -> None:
        async with sockets(zmq.PAIR, zmq.PAIR) as (left, right):
            for number in range(200):
                with trio.move_on_after(0.001 if number % 3 else 0):
                    await left.receive()
                    pytest.fail("nothing was sent")
                await right.send([b"%d" % number])
                with trio.CancelScope() as scope:
                    scope.cancel()
                    await left.receive()
                    pytest.fail("received although cancelled")
                assert await left.receive() == [b"%d" % number]

    run(main)


def test_a_router_says_that_a_peer_is_gone() -> None:
    async def main() -> None:
        async with sockets(zmq.ROUTER, zmq.DEALER) as (router, dealer):
            with pytest.raises(PeerGone):
                await router.send([b"nobody", b"hello"])
            await dealer.send([b"hello"])
            identity, _ = await router.receive()
            await router.send([identity, b"welcome"])
            assert await dealer.receive() == [b"welcome"]
            dealer.close()
            with contextlib.suppress(PeerGone):
                while True:  # zmq notices some time later
                    await router.send([identity, b"still there?"])
                    await trio.sleep(0.001)

    run(main)


def test_closing_ends_every_wait() -> None:
    async def main() -> None:
        async with sockets(zmq.PAIR, zmq.PAIR, options={zmq.SNDHWM: 1, zmq.RCVHWM: 1}) as (left, _):
            ended = 0

            async def wait(operation: Callable[[], object]) -> None:
                nonlocal ended
                with pytest.raises(trio.ClosedResourceError):
                    await operation()  # type: ignore[misc]
                ended += 1

            while left.try_send([b"fill"]):
                pass
            async with trio.open_nursery() as nursery:
                for _ in range(3):
                    nursery.start_soon(wait, left.receive)
                    nursery.start_soon(wait, lambda: left.send([b"more"]))
                await trio.testing.wait_all_tasks_blocked()
                assert left.statistics()["tasks_receiving"] == 3
                left.close()
                left.close()
            assert ended == 6
            with pytest.raises(trio.ClosedResourceError):
                left.try_send([b"late"])

    run(main)


def test_too_many_frames_are_our_own_mistake() -> None:
    async def main() -> None:
        async with sockets(zmq.PAIR, zmq.PAIR) as (left, right):
            with pytest.raises(ValueError, match=str(FRAMES_MAX)):
                left.try_send([b""] * (FRAMES_MAX + 1))
            await left.send([b""] * FRAMES_MAX)
            assert len(await right.receive()) == FRAMES_MAX

    run(main)


def test_it_works_over_a_socket_file(tmp_path: Path) -> None:
    async def main() -> None:
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        server, client = context.socket(zmq.ROUTER), context.socket(zmq.REQ)
        server.bind(f"ipc://{tmp_path}/s")
        client.connect(f"ipc://{tmp_path}/s")
        try:
            with trio.fail_after(PATIENCE_SECONDS):
                async with (
                    trio.open_nursery() as nursery,
                    TrioSocket(server) as ours,
                    TrioSocket(client) as theirs,
                ):
                    await nursery.start(ours.pump)
                    await nursery.start(theirs.pump)
                    for number in range(100):
                        await theirs.send([b"%d" % number])
                        await ours.send(await ours.receive())
                        assert await theirs.receive() == [b"%d" % number]
        finally:
            context.destroy(linger=0)

    run(main)
