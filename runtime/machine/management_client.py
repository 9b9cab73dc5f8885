"""The client's side of a machine's management socket and event stream, for the command line. Blocking."""

import time
from collections.abc import Iterator
from types import TracebackType
from typing import Any, ClassVar, Final, Self

import msgspec
import zmq

from runtime.exits import CommandError, ExitCode
from runtime.machine.events import Event, KeptEvents, decode_event
from runtime.machine.management_wire import CANCEL, REQUEST_SECONDS_MAX, ManagementStatus, Reply, Request
from runtime.machine.rundir import MachineFolder

ANSWER_SECONDS_MAX: Final = REQUEST_SECONDS_MAX + 2.0  # the machine itself gives up earlier, and says so
REPLY_BYTES_MAX: Final = 4 << 20
STOP_SECONDS_MAX: Final = 15.0
CANCELLED_SECONDS_MAX: Final = 25.0  # a guest that is coming to rest is waited for, and then made to go on
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


class GivenUp(CommandError):
    """By Ctrl-C, and by the machine, too: nothing has changed."""

    exit_code: ClassVar[ExitCode] = ExitCode.INTERRUPTED


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
        return self._answer_to(self._send(verb, args), self._answer_seconds_max)

    def request_or_cancel(self, verb: str, **args: object) -> dict[str, Any]:
        """As `request`. Ctrl-C has the machine give it up, too, and waits until it has: GivenUp.

        Where it is too late for that it is answered as if nobody had wanted to give it up. KeyboardInterrupt: by a
        second Ctrl-C, or in the moment of the answer; whether it is done is unknown.
        """
        wanted = self._next_id  # before anything is sent: Ctrl-C may come at any point of it
        try:
            return self._answer_to(self._send(verb, args), self._answer_seconds_max)
        except KeyboardInterrupt:
            self._next_id = max(self._next_id, wanted + 1)
            answer = self._cancelled(wanted)
            if answer is None:
                raise
            return answer

    def _cancelled(self, number: int) -> dict[str, Any] | None:
        """Its answer, if it is too late. GivenUp. None: no such request is under way, and its answer is lost."""
        asked = self._send(CANCEL, {"request": number})
        for reply in self._replies(time.monotonic() + CANCELLED_SECONDS_MAX, CANCELLED_SECONDS_MAX):
            if reply.id == number:
                if reply.error is not None and reply.error.status is ManagementStatus.CANCELLED:
                    raise GivenUp("given up; nothing has changed")
                return self._result_of(reply)
            if reply.id == asked and not (reply.result or {}).get("cancelled"):
                return None  # replies come in order: its own would have been here
        raise AssertionError("replies end by an exception")

    def _send(self, verb: str, args: dict[str, object]) -> int:
        """Its number."""
        request = Request(self._next_id, verb, args)
        self._next_id += 1
        self._requests.send(msgspec.msgpack.encode(request))
        return request.id

    def _answer_to(self, number: int, seconds_max: float) -> dict[str, Any]:
        for reply in self._replies(time.monotonic() + seconds_max, seconds_max):
            if reply.id in (number, None):  # others are late, to requests that we gave up
                return self._result_of(reply)
        raise AssertionError("replies end by an exception")

    @staticmethod
    def _result_of(reply: Reply) -> dict[str, Any]:
        if reply.error is not None:
            raise RequestRefused(reply.error.status, reply.error.message)
        return reply.result or {}

    def _replies(self, deadline: float, seconds_max: float) -> Iterator[Reply]:
        """Each as it comes. NoAnswer: none comes in time, or the machine has gone."""
        while (left := deadline - time.monotonic()) > 0:
            if not self._requests.poll(min(int(left * 1000) + 1, _LIFE_CHECK_MS)):
                if not self._folder.is_alive():
                    raise NoAnswer(f"machine {self._folder.name!r} ended before it answered")
                continue
            try:
                reply = msgspec.msgpack.decode(self._requests.recv_multipart()[-1], type=Reply)
            except (ValueError, RecursionError) as error:
                raise self._garbage(error) from error
            yield reply
        raise NoAnswer(
            f"machine {self._folder.name!r} (pid {self._folder.pid}) does not answer within"
            f" {seconds_max:g} s; if it hangs: kill -9 {self._folder.pid}"
        )

    def past_events(self, since: int = 0) -> Iterator[Event]:
        """What the machine has kept after event number `since`."""
        while True:
            kept = self._kept_events(since)
            yield from kept.events
            if not kept.events or kept.events[-1].sequence >= kept.last_sequence:
                return
            since = kept.events[-1].sequence

    def last_sequence(self) -> int:
        """The number of the newest event. 0: nothing has happened yet."""
        return self._kept_events(0).last_sequence

    def _kept_events(self, since: int) -> KeptEvents:
        answer = self.request("events", since=since)
        try:
            return msgspec.convert(answer, KeptEvents)
        except msgspec.ValidationError as error:
            raise self._garbage(error) from error

    def _garbage(self, error: Exception) -> NoAnswer:
        return NoAnswer(f"machine {self._folder.name!r} answered with garbage: {error}")

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
                    event = self._streamed(stream.recv_multipart()[-1])
                    if event.sequence > last + 1 and not ended:
                        break  # some were missed: the log may have kept them, this one included
                    if event.sequence > last:
                        last = event.sequence
                        yield event
                if ended:
                    return
        finally:
            stream.close(0)

    def _streamed(self, encoded: bytes) -> Event:
        try:
            return decode_event(encoded)
        except (ValueError, RecursionError) as error:
            raise self._garbage(error) from error

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
