"""The client's side of a machine's management socket and event stream, for the command line. Blocking."""

import time
from collections.abc import Iterator
from types import TracebackType
from typing import Any, ClassVar, Final, Self

import msgspec
import zmq

from runtime.exits import CommandError, ExitCode
from runtime.machine.events import Event, decode_event
from runtime.machine.management_wire import REQUEST_SECONDS_MAX, ManagementStatus, Reply, Request
from runtime.machine.rundir import MachineFolder

ANSWER_SECONDS_MAX: Final = REQUEST_SECONDS_MAX + 2.0  # the machine itself gives up earlier, and says so
REPLY_BYTES_MAX: Final = 4 << 20
STOP_SECONDS_MAX: Final = 15.0
_LIFE_CHECK_MS: Final = 500
_POLL_SECONDS: Final = 0.02


class NoAnswer(CommandError):
    """The machine is there, or was just now, and does not answer."""

    exit_code: ClassVar[ExitCode] = ExitCode.NO_ANSWER


class RequestRefused(CommandError):
    """The machine answered with an error."""

    def __init__(self, status: ManagementStatus, message: str) -> None:
        super().__init__(message)
        self.status = status
        if status is ManagementStatus.NOT_FOUND:
            self.exit_code = ExitCode.NOT_FOUND  # type: ignore[misc]


class ManagementClient:
    """Talks to one machine. Use it in a `with` block, from one thread."""

    def __init__(self, folder: MachineFolder, answer_seconds_max: float = ANSWER_SECONDS_MAX) -> None:
        self._folder, self._answer_seconds_max = folder, answer_seconds_max
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._requests = self._context.socket(zmq.DEALER)
        self._requests.setsockopt(zmq.MAXMSGSIZE, REPLY_BYTES_MAX)
        self._requests.connect(f"ipc://{folder.management_path}")
        self._next_id = 1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._context.destroy(linger=0)

    def request(self, verb: str, **args: object) -> dict[str, Any]:
        """Ask, and wait for the answer.

        Raises:
            RequestRefused: the machine said no.
            NoAnswer: it said nothing in time, or went away; whether it acted is unknown.
        """
        request = Request(self._next_id, verb, args)
        self._next_id += 1
        self._requests.send(msgspec.msgpack.encode(request))
        deadline = time.monotonic() + self._answer_seconds_max
        while (left := deadline - time.monotonic()) > 0:
            if not self._requests.poll(min(int(left * 1000) + 1, _LIFE_CHECK_MS)):
                if not self._folder.is_alive():
                    raise NoAnswer(f"machine {self._folder.name!r} ended before it answered")
                continue
            try:
                reply = msgspec.msgpack.decode(self._requests.recv_multipart()[-1], type=Reply)
            except (ValueError, RecursionError) as error:
                raise NoAnswer(f"machine {self._folder.name!r} answered with garbage: {error}") from error
            if reply.id not in (request.id, None):
                continue  # late, to a request that we gave up
            if reply.error is not None:
                raise RequestRefused(reply.error.status, reply.error.message)
            return reply.result or {}
        raise NoAnswer(
            f"machine {self._folder.name!r} (pid {self._folder.pid}) does not answer within"
            f" {self._answer_seconds_max:g} s; if it hangs: kill -9 {self._folder.pid}"
        )

    def past_events(self, since: int = 0) -> Iterator[Event]:
        """What the machine has kept after event number `since`."""
        while True:
            answer = self.request("events", since=since)
            events = msgspec.convert(answer["events"], list[Event])
            yield from events
            if not events or events[-1].sequence >= answer["last_sequence"]:
                return
            since = events[-1].sequence

    def events(self) -> Iterator[Event]:
        """All kept events, then each new one, until the machine ends. None comes twice.

        A gap in `sequence` means that the events between were not kept, or that we read too slowly.
        """
        stream = self._context.socket(zmq.SUB)
        stream.setsockopt(zmq.MAXMSGSIZE, REPLY_BYTES_MAX)
        stream.subscribe(b"")
        stream.connect(f"ipc://{self._folder.events_path}")
        try:
            last, ended = 0, False
            # The stream begins some time after connect(): asking the log whenever it is quiet closes the gap.
            while True:
                try:
                    for event in self.past_events(last):
                        last = event.sequence
                        yield event
                except NoAnswer:
                    if self._folder.is_alive():
                        raise
                    ended = True
                while stream.poll(0 if ended else _LIFE_CHECK_MS):
                    event = decode_event(stream.recv_multipart()[-1])
                    if event.sequence > last + 1 and not ended:
                        break  # some were missed: the log may have kept them, this one included
                    if event.sequence > last:
                        last = event.sequence
                        yield event
                if ended:
                    return
        finally:
            stream.close(0)

    def stop(self, seconds_max: float = STOP_SECONDS_MAX) -> None:
        """Ask the machine to end and wait until it has, with nothing left of it. NoAnswer: it has not."""
        try:
            self.request("stop")
        except NoAnswer:
            if self._folder.is_alive():
                raise
        deadline = time.monotonic() + seconds_max
        while self._folder.path.exists():
            if time.monotonic() > deadline:
                raise NoAnswer(
                    f"machine {self._folder.name!r} (pid {self._folder.pid}) has not ended within"
                    f" {seconds_max:g} s; end it with: kill -9 {self._folder.pid}"
                )
            time.sleep(_POLL_SECONDS)
