"""The management socket and the event stream of a running machine: what the platform serves.

Both are zmq sockets over ipc, 0600 in a 0700 folder, so whoever can write to them is the user or root; still
a malformed request gets a typed error and hurts nobody else. `management_wire` has what goes over them, and
`management_verbs` what can be asked.
"""

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import msgspec
import trio
import zmq

from runtime.machine.events import Event, EventLog, KeptEvents
from runtime.machine.machine_control import ControlError, MachineControl
from runtime.machine.management_verbs import VERBS, Verb
from runtime.machine.management_wire import (
    CANCEL,
    COPYING,
    COPYING_SECONDS_MAX,
    REQUEST_SECONDS_MAX,
    ManagementStatus,
    Reply,
    ReplyError,
    Request,
)
from runtime.machine.rundir import MachineFolder
from runtime.machine.zmq_trio import PeerGone, TrioSocket

REQUEST_BYTES_MAX: Final = 64 << 10
FRAME_BYTES_MAX: Final = 1 << 20  # a peer that sends more is disconnected by zmq
ENVELOPE_FRAMES_MAX: Final = 3  # identity, and the empty delimiter of a REQ socket, and one to spare
REQUESTS_AT_ONCE_MAX: Final = 32
REPLIES_QUEUED_MAX: Final = 64  # for one client; one that does not read loses its replies
EVENTS_QUEUED_MAX: Final = 4096  # for one subscriber; one that does not read misses events, and can tell
EVENTS_REPLY_BYTES_MAX: Final = 256 << 10
LINGER_MS: Final = 200  # at the end, for the reply to `stop` and the last events
_ERROR_CHARACTERS_MAX: Final = 500


async def serve_management(
    control: MachineControl,
    folder: MachineFolder,
    log: EventLog,
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve both sockets until cancelled. Reports started once clients can connect.

    On the way out the last replies and events get LINGER_MS to leave, then the socket files are removed.
    """
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    try:
        requests = context.socket(zmq.ROUTER)
        requests.setsockopt(zmq.ROUTER_MANDATORY, 1)
        requests.setsockopt(zmq.MAXMSGSIZE, FRAME_BYTES_MAX)
        requests.setsockopt(zmq.SNDHWM, REPLIES_QUEUED_MAX)
        requests.setsockopt(zmq.RCVHWM, REQUESTS_AT_ONCE_MAX)
        publisher = context.socket(zmq.PUB)
        publisher.setsockopt(zmq.MAXMSGSIZE, FRAME_BYTES_MAX)  # of subscriptions
        publisher.setsockopt(zmq.SNDHWM, EVENTS_QUEUED_MAX)
        _bind(requests, folder.management_path)
        _bind(publisher, folder.events_path)

        def publish(event: Event, encoded: bytes) -> None:
            publisher.send_multipart([event.kind.encode(), encoded], zmq.NOBLOCK)  # PUB drops, never blocks

        end_publishing = log.listen(publish)
        try:
            async with TrioSocket(requests) as socket, trio.open_nursery() as nursery:
                await nursery.start(socket.pump)
                server = _Server(control, log, socket, nursery)
                task_status.started()
                try:
                    await server.serve()
                finally:
                    socket.close(LINGER_MS)
        finally:
            end_publishing()
    finally:
        context.destroy(linger=LINGER_MS)
        for path in (folder.management_path, folder.events_path):  # zmq leaves them
            path.unlink(missing_ok=True)


def _bind(socket: "zmq.Socket[bytes]", path: Path) -> None:
    """Bind so that the file is 0600 from the first moment. zmq creates it in this thread, within bind()."""
    umask_before = os.umask(0o177)
    try:
        socket.bind(f"ipc://{path}")
    finally:
        os.umask(umask_before)


def _copies(request: Request) -> bool:
    """Whether it copies a partition's memory: that takes its time, and leaves nothing behind when it is given up."""
    return request.verb == "operate" and request.args.get("operation") in COPYING


def _key(envelope: list[bytes], number: int) -> tuple[bytes, ...]:
    return (*envelope, b"%d" % number)


class _Server:
    def __init__(
        self, control: MachineControl, log: EventLog, socket: TrioSocket, nursery: trio.Nursery
    ) -> None:
        self._control, self._log, self._socket, self._nursery = control, log, socket, nursery
        self._at_once = 0
        self._copies: dict[tuple[bytes, ...], trio.CancelScope] = {}  # that can be given up, by client and id
        self._verbs: Mapping[str, Verb] = {**VERBS, "events": Verb({"since": int}, self._events)}

    async def serve(self) -> None:
        while True:
            frames = await self._socket.receive()
            if not 2 <= len(frames) <= ENVELOPE_FRAMES_MAX:
                problem = f"{len(frames) - 1} frames; a request is one"
                self._refuse(frames[:1], None, ManagementStatus.BAD_REQUEST, problem)
                continue
            envelope, body = frames[:-1], frames[-1]
            try:
                request = self._decode(body)
            except ControlError as error:
                self._refuse(envelope, None, error.status, error.message)
                continue
            if request.verb == CANCEL:  # in time also where too many requests are under way
                self._cancel(envelope, request)
                continue
            if self._at_once >= REQUESTS_AT_ONCE_MAX:
                busy = f"{self._at_once} requests are under way"
                self._refuse(envelope, request.id, ManagementStatus.BUSY, busy)
                continue
            self._at_once += 1
            scope = trio.CancelScope()
            if copies := _copies(request):
                self._copies[_key(envelope, request.id)] = scope
            self._nursery.start_soon(self._answer, envelope, request, scope, copies)

    @staticmethod
    def _decode(body: bytes) -> Request:
        bad = ManagementStatus.BAD_REQUEST
        if len(body) > REQUEST_BYTES_MAX:
            raise ControlError(bad, f"{len(body)} bytes; at most {REQUEST_BYTES_MAX}")
        try:
            request = msgspec.msgpack.decode(body, type=Request)
        except RecursionError as error:
            raise ControlError(bad, "values nested too deeply") from error
        except (ValueError, TypeError, MemoryError) as error:  # hostile bytes; DecodeError is a ValueError
            raise ControlError(bad, f"not a request map {{id, verb, args}}: {error}") from error
        return request

    def _cancel(self, envelope: list[bytes], request: Request) -> None:
        number = request.args.get("request")
        if type(number) is not int or len(request.args) > 1:
            problem = f"{CANCEL} wants {{request: int}}, the id of the request to give up"
            self._refuse(envelope, request.id, ManagementStatus.BAD_REQUEST, problem)
            return
        scope = self._copies.get(_key(envelope, number))
        if scope is not None:
            scope.cancel()
        reply = Reply(request.id, True, {"cancelled": scope is not None})
        self._send(envelope, msgspec.msgpack.encode(reply))

    async def _answer(
        self, envelope: list[bytes], request: Request, scope: trio.CancelScope, copies: bool
    ) -> None:
        seconds_max = COPYING_SECONDS_MAX if copies else REQUEST_SECONDS_MAX
        try:
            result: Mapping[str, Any] | None = None
            with scope, trio.fail_after(seconds_max):
                result = await self._perform(request)
            if result is None:
                raise ControlError(ManagementStatus.CANCELLED, "given up")
            reply = msgspec.msgpack.encode(Reply(request.id, True, dict(result)))
        except ControlError as error:
            self._refuse(envelope, request.id, error.status, error.message)
        except trio.TooSlowError:
            problem = f"no result within {seconds_max:g} s"
            self._refuse(envelope, request.id, ManagementStatus.TIMED_OUT, problem)
        except Exception as error:  # one request that fails must not take the machine with it
            problem = f"{type(error).__name__}: {error}"
            self._log.append("management.failed", verb=request.verb, error=problem[:_ERROR_CHARACTERS_MAX])
            self._refuse(envelope, request.id, ManagementStatus.FAILED, problem)
        else:
            self._send(envelope, reply)
        finally:
            self._at_once -= 1
            if self._copies.get(key := _key(envelope, request.id)) is scope:
                del self._copies[key]

    async def _perform(self, request: Request) -> Mapping[str, Any]:
        if request.verb not in self._verbs:
            known = ", ".join(self._verbs)
            raise ControlError(ManagementStatus.UNKNOWN_VERB, f"{request.verb[:40]!r}; known verbs: {known}")
        verb = self._verbs[request.verb]
        kinds = verb.arguments
        for name in {**kinds, **request.args}:
            value = request.args.get(name)
            if name not in kinds or type(value) is not kinds[name]:
                wanted = ", ".join(f"{key}: {kind.__name__}" for key, kind in kinds.items()) or "none"
                problem = f"argument {name[:40]!r} of {request.verb}; its arguments: {wanted}"
                raise ControlError(ManagementStatus.BAD_REQUEST, problem)
        return await verb.perform(self._control, request.args)

    def _refuse(
        self, envelope: list[bytes], request_id: int | None, status: ManagementStatus, message: str
    ) -> None:
        error = ReplyError(status, message[:_ERROR_CHARACTERS_MAX])
        self._send(envelope, msgspec.msgpack.encode(Reply(request_id, False, error=error)))

    def _send(self, envelope: list[bytes], reply: bytes) -> None:
        """A client that went away, or does not read, loses its reply; nobody waits for it."""
        with contextlib.suppress(PeerGone, trio.ClosedResourceError):
            self._socket.try_send([*envelope, reply])

    async def _events(self, control: MachineControl, args: Mapping[str, Any]) -> Mapping[str, Any]:
        events = self._log.since(args["since"], EVENTS_REPLY_BYTES_MAX)
        return msgspec.structs.asdict(KeptEvents(events, self._log.last_sequence))
