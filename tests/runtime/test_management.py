"""The management socket and the event stream: real sockets, honest clients and hostile ones."""

import contextlib
import dataclasses
import os
import stat
import tempfile
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
import zmq
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.exits import ExitCode
from runtime.machine import management
from runtime.machine.events import Event, EventLog, decode_event
from runtime.machine.machine_control import ControlError
from runtime.machine.management import REQUEST_BYTES_MAX, REQUESTS_AT_ONCE_MAX, serve_management
from runtime.machine.management_client import ManagementClient, NoAnswer, RequestRefused
from runtime.machine.management_wire import ManagementStatus
from runtime.machine.rundir import MachineFolder, machine_folder

PATIENCE_SECONDS = 20.0
PARTITIONS = [{"id": 1, "name": "root", "state": "active"}, {"id": 2, "name": "child", "state": "active"}]


class StandIn:
    """A machine that only answers. It counts what it was asked."""

    def __init__(self) -> None:
        self.killed: list[str] = []
        self.stopped = trio.Event()
        self.release_slow = trio.Event()

    async def status(self) -> Mapping[str, Any]:
        return {"name": "m", "ready": True}

    async def list_partitions(self) -> list[Mapping[str, Any]]:
        return list(PARTITIONS)

    async def show(self, name: str) -> Mapping[str, Any]:
        if name == "slow":
            await self.release_slow.wait()
        if name == "broken":
            raise RuntimeError("a mistake of the platform's")
        if name == "odd":
            return {"value": object()}
        for partition in PARTITIONS:
            if partition["name"] == name:
                return partition
        raise ControlError(ManagementStatus.NOT_FOUND, f"no partition named {name!r}")

    async def kill(self, name: str) -> None:
        self.killed.append(name)

    async def stop(self) -> None:
        self.stopped.set()


class ServedMachine:
    """A stand-in behind a real management server, in a thread of its own."""

    def __init__(self, folder: MachineFolder) -> None:
        self.folder, self.log, self.control = folder, EventLog(kept_max=100), StandIn()
        self._ready = threading.Event()
        self._token: trio.lowlevel.TrioToken | None = None
        self._thread = threading.Thread(target=trio.run, args=(self._run,))

    async def _run(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        async with trio.open_nursery() as nursery:
            await nursery.start(serve_management, self.control, self.folder, self.log)
            self._ready.set()
            await self.control.stopped.wait()
            self.log.append("machine.stopped")
            nursery.cancel_scope.cancel()

    def do(self, function: Any, *args: Any) -> Any:
        """Call in the machine's own thread."""
        assert self._token is not None
        return trio.from_thread.run_sync(function, *args, trio_token=self._token)

    def happen(self, kind: str, **fields: object) -> Event:
        event: Event = self.do(lambda: self.log.append(kind, None, **fields))
        return event

    def start(self) -> None:
        self._thread.start()
        assert self._ready.wait(PATIENCE_SECONDS)

    def end(self) -> None:
        with contextlib.suppress(trio.RunFinishedError):
            self.do(self.control.stopped.set)
        self._thread.join(PATIENCE_SECONDS)
        assert not self._thread.is_alive()


@pytest.fixture
def machine(runtime_base: Path) -> Iterator[ServedMachine]:
    with machine_folder("m") as folder:
        served = ServedMachine(folder)
        served.start()
        try:
            yield served
        finally:
            served.end()


class RawClient:
    """Says whatever it likes to a management socket."""

    def __init__(self, folder: MachineFolder, kind: int = zmq.DEALER, replies_max: int = 1000) -> None:
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.socket = self.context.socket(kind)
        self.socket.setsockopt(zmq.RCVTIMEO, int(PATIENCE_SECONDS * 1000))
        self.socket.setsockopt(zmq.RCVHWM, replies_max)
        self.socket.connect(f"ipc://{folder.management_path}")

    def __enter__(self) -> "RawClient":
        return self

    def __exit__(self, *exc: object) -> None:
        self.context.destroy(linger=0)

    def ask(self, *frames: bytes) -> dict[str, Any]:
        self.socket.send_multipart(frames)
        return self.read()

    def read(self) -> dict[str, Any]:
        reply: dict[str, Any] = msgspec.msgpack.decode(self.socket.recv_multipart()[-1])
        return reply


def request(verb: object, number: object = 1, **args: object) -> bytes:
    return msgspec.msgpack.encode({"id": number, "verb": verb, "args": args})


def test_every_verb_answers(machine: ServedMachine) -> None:
    with ManagementClient(machine.folder) as client:
        assert client.request("status") == {"name": "m", "ready": True}
        assert client.request("list") == {"partitions": PARTITIONS}
        assert client.request("show", name="child") == PARTITIONS[1]
        assert client.request("kill", name="child") == {}
        assert machine.control.killed == ["child"]
        assert client.request("events", since=0) == {"events": [], "last_sequence": 0}
        assert client.request("stop") == {}


def test_the_sockets_are_private_and_gone_afterwards(machine: ServedMachine) -> None:
    for path in (machine.folder.management_path, machine.folder.events_path):
        assert stat.S_ISSOCK(path.stat().st_mode)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    machine.end()
    assert [path.name for path in machine.folder.path.iterdir()] == ["lock"]


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        (b"", "BAD_REQUEST", "not a request map"),
        (b"\xc1", "BAD_REQUEST", "not a request map"),
        (b"hello", "BAD_REQUEST", "not a request map"),
        (b"\xdd\xff\xff\xff\xff", "BAD_REQUEST", "not a request map"),
        (b"\x81\xa2id" + b"\x91" * 60_000, "BAD_REQUEST", "not a request map"),
        (
            b"\x83\xa2id\x01\xa4verb\xa1x\xa4args\x81\xa1a" + b"\x91" * 60_000,
            "BAD_REQUEST",
            "nested too deeply",
        ),
        (b"\x00" * (REQUEST_BYTES_MAX + 1), "BAD_REQUEST", f"at most {REQUEST_BYTES_MAX}"),
        (msgspec.msgpack.encode([1, "list"]), "BAD_REQUEST", "not a request map"),
        (msgspec.msgpack.encode({"id": 1}), "BAD_REQUEST", "verb"),
        (msgspec.msgpack.encode({"id": 1, "verb": "list", "more": 1}), "BAD_REQUEST", "more"),
        (msgspec.msgpack.encode({"id": 2**64 - 1, "verb": 3}), "BAD_REQUEST", "verb"),
        (msgspec.msgpack.encode({"id": 1, "verb": "list"}) + b"x", "BAD_REQUEST", "trailing"),
        (request("list", number="one"), "BAD_REQUEST", "id"),
        (request("dance"), "UNKNOWN_VERB", "known verbs: status, list"),
        (request("x" * 60_000), "UNKNOWN_VERB", "known verbs"),
        (request(""), "UNKNOWN_VERB", "known verbs"),
        (request("show"), "BAD_REQUEST", "its arguments: name: str"),
        (request("show", name=3), "BAD_REQUEST", "its arguments: name: str"),
        (request("show", name="child", other=1), "BAD_REQUEST", "'other'"),
        (request("list", name="child"), "BAD_REQUEST", "its arguments: none"),
        (request("events", since=True), "BAD_REQUEST", "since: int"),
        (request("show", name="nobody"), "NOT_FOUND", "no partition named 'nobody'"),
        (request("show", name="x" * 60_000), "NOT_FOUND", "no partition"),
        (request("show", name="broken"), "FAILED", "RuntimeError: a mistake of the platform's"),
        (request("show", name="odd"), "FAILED", "object"),
    ],
)
def test_a_bad_request_gets_a_typed_error_and_hurts_nobody(
    machine: ServedMachine, body: bytes, status: str, says: str
) -> None:
    with RawClient(machine.folder) as hostile, ManagementClient(machine.folder) as honest:
        reply = hostile.ask(body)
        assert reply["ok"] is False
        assert reply["error"]["status"] == status
        assert says in reply["error"]["message"]
        assert len(reply["error"]["message"]) <= 500
        assert hostile.ask(request("list", number=7)) == {
            "id": 7,
            "ok": True,
            "result": {"partitions": PARTITIONS},
        }
        assert honest.request("list") == {"partitions": PARTITIONS}


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.binary(max_size=200)
        | st.builds(
            lambda value: msgspec.msgpack.encode(value),
            st.recursive(
                st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.text(max_size=8),
                lambda inner: (
                    st.lists(inner, max_size=3)
                    | st.dictionaries(
                        st.sampled_from(["id", "verb", "args", "name", "since"]), inner, max_size=4
                    )
                ),
            ),
        ),
        min_size=1,
        max_size=4,
    )
)
def test_any_bytes_get_one_answer(hostile_machine: ServedMachine, frames: list[bytes]) -> None:
    """Each message, of any frames, is answered once, and the next honest request as if nothing had been."""
    with RawClient(hostile_machine.folder) as client:
        reply = client.ask(*frames)
        assert reply["ok"] is False
        assert reply["error"]["status"] in [str(status) for status in ManagementStatus]
        assert client.ask(request("list", number=9))["id"] == 9


@pytest.fixture(scope="module")
def hostile_machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedMachine]:
    with pytest.MonkeyPatch.context() as patch, tempfile_base() as base:
        patch.setenv("PARTVISOR_RUNTIME_DIR", base)
        with machine_folder("m") as folder:
            served = ServedMachine(folder)
            served.start()
            try:
                yield served
            finally:
                served.end()


@contextlib.contextmanager
def tempfile_base() -> Iterator[str]:
    with tempfile.TemporaryDirectory(prefix="pv") as folder:
        yield f"{folder}/base"


def test_a_frame_beyond_all_measure_costs_its_sender_the_connection_only(machine: ServedMachine) -> None:
    with RawClient(machine.folder) as hostile, ManagementClient(machine.folder) as honest:
        hostile.socket.send(bytes(management.FRAME_BYTES_MAX + 1))
        hostile.socket.setsockopt(zmq.RCVTIMEO, 100)
        with pytest.raises(zmq.Again):
            hostile.socket.recv()
        assert honest.request("list") == {"partitions": PARTITIONS}


def test_a_slow_request_holds_nobody_up_and_too_many_are_refused(machine: ServedMachine) -> None:
    with RawClient(machine.folder) as greedy, ManagementClient(machine.folder) as honest:
        for number in range(REQUESTS_AT_ONCE_MAX):
            greedy.socket.send(request("show", number, name="slow"))
            if number == 0:
                assert honest.request("list") == {"partitions": PARTITIONS}
        reply = greedy.ask(request("list", number=1000))
        assert (reply["id"], reply["error"]["status"]) == (1000, "BUSY")
        machine.do(machine.control.release_slow.set)
        answers = [greedy.read() for _ in range(REQUESTS_AT_ONCE_MAX)]
        assert sorted(answer["id"] for answer in answers) == list(range(REQUESTS_AT_ONCE_MAX))
        assert honest.request("list") == {"partitions": PARTITIONS}


def test_a_request_that_never_ends_is_timed_out(
    machine: ServedMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(management, "REQUEST_SECONDS_MAX", 0.05)
    with ManagementClient(machine.folder) as client:
        with pytest.raises(RequestRefused) as caught:
            client.request("show", name="slow")
        assert caught.value.status is ManagementStatus.TIMED_OUT
        assert client.request("list") == {"partitions": PARTITIONS}


def test_clients_that_vanish_or_do_not_read_stop_nothing(machine: ServedMachine) -> None:
    with RawClient(machine.folder, replies_max=1) as deaf:
        for number in range(50):
            with RawClient(machine.folder) as fleeting:
                fleeting.socket.send(request("list", number))
            for _ in range(20):
                deaf.socket.send(request("list", number))
        with ManagementClient(machine.folder) as honest:
            assert honest.request("list") == {"partitions": PARTITIONS}


def test_a_req_socket_works_too(machine: ServedMachine) -> None:
    """The usual client in other languages."""
    with RawClient(machine.folder, zmq.REQ) as client:
        for number in range(3):
            assert client.ask(request("list", number))["id"] == number
        assert client.ask(b"nonsense")["ok"] is False
        assert client.ask(request("list", 4))["id"] == 4


def test_a_machine_that_does_not_answer_is_a_one_line_error(runtime_base: Path) -> None:
    with machine_folder("mute") as folder, ManagementClient(folder, answer_seconds_max=0.05) as client:
        with pytest.raises(
            NoAnswer, match=f"'mute' .pid {os.getpid()}. does not answer within 0.05 s"
        ) as caught:
            client.request("list")
        assert caught.value.exit_code == ExitCode.NO_ANSWER


def test_a_machine_that_ends_while_it_is_asked_is_noticed(machine: ServedMachine) -> None:
    gone = dataclasses.replace(machine.folder, path=machine.folder.path / "gone")
    with ManagementClient(gone) as client, pytest.raises(NoAnswer, match="ended before it answered"):
        client.request("list")


def test_a_refusal_carries_the_exit_code(machine: ServedMachine) -> None:
    with ManagementClient(machine.folder) as client:
        with pytest.raises(RequestRefused) as caught:
            client.request("show", name="nobody")
        assert caught.value.exit_code == ExitCode.NOT_FOUND
        with pytest.raises(RequestRefused) as caught:
            client.request("show", name="broken")
        assert caught.value.exit_code == ExitCode.FAILED


# -- events


def test_a_follower_gets_every_event_once_and_in_order_until_the_machine_ends(machine: ServedMachine) -> None:
    """Events happen before, while and after the follower connects; some arrive by replay, some by stream."""
    past = [machine.happen("past", number=number) for number in range(50)]
    seen: list[Event] = []
    with ManagementClient(machine.folder) as client:
        for event in client.events():
            seen.append(event)
            if len(seen) == len(past):
                for number in range(50):
                    machine.happen("present", number=number)
            if len(seen) == 100:
                machine.do(machine.control.stopped.set)
            if event.kind == "machine.stopped":
                break
    assert [event.sequence for event in seen] == list(range(1, 102))
    assert seen[:50] == past
    assert seen[-1].kind == "machine.stopped"


def test_a_follower_that_comes_too_late_sees_the_gap_and_goes_on(machine: ServedMachine) -> None:
    """The first events are not kept any more: their numbers are missing, and what is left comes in order."""
    missed = 10
    for _ in range(machine.log._kept_max + missed):
        machine.happen("old")
    with ManagementClient(machine.folder) as client:
        follower = client.events()
        numbers = [next(follower).sequence]
        assert numbers[0] == missed + 1
        machine.happen("last")
        for event in follower:
            numbers.append(event.sequence)
            if event.kind == "last":
                break
        assert numbers == list(range(numbers[0], numbers[-1] + 1))


def test_subscribers_may_choose_by_kind(machine: ServedMachine) -> None:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    try:
        stream = context.socket(zmq.SUB)
        stream.setsockopt(zmq.RCVTIMEO, 100)
        stream.subscribe(b"partition.")
        stream.connect(f"ipc://{machine.folder.events_path}")
        event, frames = None, None
        while frames is None:  # until the subscription has reached the publisher
            machine.happen("root.started")
            event = machine.happen("partition.started", pid=1)
            with contextlib.suppress(zmq.Again):
                frames = stream.recv_multipart()
        assert frames[0] == b"partition.started"
        assert decode_event(frames[1]).kind == "partition.started"
        assert event is not None
    finally:
        context.destroy(linger=0)
