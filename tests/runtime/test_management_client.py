"""The client of a management socket, where the machine answers, and answers with what nobody asked for."""

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
import zmq

from runtime.machine.events import EventLog
from runtime.machine.management_client import ManagementClient, NoAnswer
from runtime.machine.management_wire import Reply
from runtime.machine.rundir import MachineFolder, machine_folder

_LOOK_MS = 20
EVENT = {"sequence": 1, "monotonic_ns": 2, "wall_ns": 3, "kind": "a.b", "partition": None, "fields": {}}


@contextmanager
def answering(
    folder: MachineFolder, results: Sequence[Mapping[str, Any]], streamed: bytes = b""
) -> Iterator[None]:
    """A machine that answers with these results in turn, then with the last, and streams that to whoever listens."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    router, stream = context.socket(zmq.ROUTER), context.socket(zmq.XPUB)
    router.bind(f"ipc://{folder.management_path}")
    stream.bind(f"ipc://{folder.events_path}")
    over, left = threading.Event(), list(results)

    def serve() -> None:
        poller = zmq.Poller()
        poller.register(router, zmq.POLLIN)
        poller.register(stream, zmq.POLLIN)
        while not over.is_set():
            ready = dict(poller.poll(_LOOK_MS))
            if router in ready:
                *envelope, request = router.recv_multipart()
                number, result = msgspec.msgpack.decode(request)["id"], left[0]
                del left[: len(left) > 1]
                router.send_multipart([*envelope, msgspec.msgpack.encode(Reply(number, True, dict(result)))])
            if stream in ready:  # a subscription
                stream.recv()
                stream.send_multipart([b"a.b", streamed])

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        context.destroy(linger=0)


@pytest.mark.parametrize(
    "answer",
    [
        {},
        {"events": [], "last_sequence": "1"},
        {"events": [EVENT]},
        {"events": [EVENT | {"sequence": None}], "last_sequence": 1},
        {"events": [EVENT | {"more": 1}], "last_sequence": 1},
        {"events": {"sequence": 1}, "last_sequence": 1},
    ],
)
def test_events_that_are_none_are_garbage_and_said_so(runtime_base: Path, answer: dict[str, Any]) -> None:
    with (
        machine_folder("m") as folder,
        answering(folder, [answer]),
        ManagementClient(folder) as client,
    ):
        for ask in (lambda: list(client.past_events()), client.last_sequence):
            with pytest.raises(NoAnswer, match="'m' answered with garbage"):
                ask()


def test_a_stream_of_garbage_is_said_so(runtime_base: Path) -> None:
    nothing = {"events": [], "last_sequence": 0}
    with (
        machine_folder("m") as folder,
        answering(folder, [nothing], b"\xc1"),
        ManagementClient(folder) as client,
        pytest.raises(NoAnswer, match="'m' answered with garbage"),
    ):
        next(client.events())


def test_the_past_comes_in_as_many_answers_as_it_takes(runtime_base: Path) -> None:
    """The log may have grown from one answer to the next; what follows the last one is the stream's."""
    log = EventLog()
    past = [log.append("past", number=number) for number in range(3)]
    answers = [
        {"events": past[:1], "last_sequence": 2},
        {"events": past[1:], "last_sequence": 3},
        {"events": [], "last_sequence": 3},
    ]
    with machine_folder("m") as folder, answering(folder, answers), ManagementClient(folder) as client:
        assert list(client.past_events()) == past
        assert client.last_sequence() == 3
