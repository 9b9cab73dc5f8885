"""The management socket and the event stream of a running machine: what the platform serves.

    management  ROUTER  request  {id, verb, args}  ->  reply  {id, ok: true, result} or {id, ok: false, error}
                        msgpack maps; error is {status, message}; id is the client's own choice
    events      PUB     [kind, event]; event is a msgpack map, see runtime.machine.events.Event

Both are zmq sockets over ipc, 0600 in a 0700 folder, so whoever can write to them is the user or root; still
a malformed request gets a typed error and hurts nobody else.

| verb | args | result |
|---|---|---|
| status | | what `MachineControl.status` returns |
| list | | {partitions: [...]} |
| show | name | what `MachineControl.show` returns |
| kill | name | {} once the partition's end is on its way |
| crash | how | {} once the root has been broken so: kill, hang, stuck |
| seam | step, passes, deaths | {} once the root has been told to die at a named step (bus.seam) |
| crash-driver | name, how | as crash, for a driver partition |
| seam-driver | name, step, passes, deaths | as seam, for a driver partition |
| inject | order | {number}; an order as runtime.chaos.faults.orders has it |
| heal | number | {} once that fault is undone; 0: all of them |
| injected | | {injected: [{order, passes, fired}]}: what is armed |
| service | | {} once the root has been asked to make room for its successor |
| interrupts | name | {ports: [...]}: every port of that partition, or of all for "", and its accounting |
| sched | | what `MachineControl.sched` returns: who has had how much of the processors |
| schedule | name, shares | {} once the partition's weight, reserve or cap has changed |
| hypervisor | | what `MachineControl.hypervisor` returns: its size, memory, calls |
| memory | name | {memory: [...]}: what the root uses which pages of that partition for |
| integration | name, service, order | what partitions.integration.control says: kvp, vss, shutdown |
| operate | operation, name, order | what runtime.machine.operations says: devices that come and go, power, errors |
| config | | the config that the machine was started with, as tables |
| reboot | | {} once every partition is being ended; "machine.rebooted" says that they are back |
| stop | | {} once the machine's end is on its way; it is over when the folder's lock is free |
| events | since | {events: [...], last_sequence}: kept events after number `since`, oldest first |
"""

import contextlib
import enum
import os
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, Final, Protocol

import msgspec
import trio
import zmq

from runtime.machine.events import Event, EventLog
from runtime.machine.rundir import MachineFolder
from runtime.machine.zmq_trio import PeerGone, TrioSocket

REQUEST_BYTES_MAX: Final = 64 << 10
FRAME_BYTES_MAX: Final = 1 << 20  # a peer that sends more is disconnected by zmq
ENVELOPE_FRAMES_MAX: Final = 3  # identity, and the empty delimiter of a REQ socket, and one to spare
REQUESTS_AT_ONCE_MAX: Final = 32
REQUEST_SECONDS_MAX: Final = 10.0
REPLIES_QUEUED_MAX: Final = 64  # for one client; one that does not read loses its replies
EVENTS_QUEUED_MAX: Final = 4096  # for one subscriber; one that does not read misses events, and can tell
EVENTS_REPLY_BYTES_MAX: Final = 256 << 10
LINGER_MS: Final = 200  # at the end, for the reply to `stop` and the last events
_ERROR_CHARACTERS_MAX: Final = 500


class ManagementStatus(enum.StrEnum):
    """Why a request failed. Branch on this, never on the message."""

    BAD_REQUEST = "BAD_REQUEST"  # not a request, or its arguments are wrong
    UNKNOWN_VERB = "UNKNOWN_VERB"
    NOT_FOUND = "NOT_FOUND"  # no such partition
    REFUSED = "REFUSED"  # not possible in the machine's present state
    BUSY = "BUSY"  # too many requests at once; try again
    TIMED_OUT = "TIMED_OUT"  # the machine took too long; the request may still take effect
    FAILED = "FAILED"  # a mistake of ours


class ControlError(Exception):
    """A request that can't be carried out; the machine is as it was. Goes to the client as it stands."""

    def __init__(self, status: ManagementStatus, message: str) -> None:
        super().__init__(status, message)
        self.status, self.message = status, message


class MachineControl(Protocol):
    """What the management socket can ask of a machine. All may raise ControlError.

    Results are maps of texts, numbers, booleans, lists and maps.
    """

    async def status(self) -> Mapping[str, Any]: ...
    async def list_partitions(self) -> list[Mapping[str, Any]]: ...
    async def show(self, name: str) -> Mapping[str, Any]: ...
    async def kill(self, name: str) -> None:
        """SIGKILL the partition's process. NOT_FOUND."""

    async def crash(self, how: str) -> None:
        """Break the root: "kill", "hang" or "stuck". REFUSED."""

    async def seam(self, step: str, passes: int, deaths: int) -> None:
        """Have the root die exactly at a named step, at that pass; and its successors, `deaths` in all. REFUSED."""

    async def crash_driver(self, name: str, how: str) -> None:
        """Break a driver partition: "kill", "hang" or "stuck". REFUSED; NOT_FOUND."""

    async def seam_driver(self, name: str, step: str, passes: int, deaths: int) -> None:
        """As `seam`, for a driver partition. REFUSED; NOT_FOUND."""

    async def inject(self, order: Mapping[str, Any]) -> int:
        """The number that it got. REFUSED."""

    async def heal(self, number: int | None) -> None:
        """One, or all. NOT_FOUND."""

    async def injected(self) -> list[Mapping[str, Any]]:
        """{order, passes, fired} of each that is armed."""

    async def service(self) -> None:
        """Replace a healthy root. REFUSED."""

    async def interrupts(self, name: str) -> list[Mapping[str, Any]]:
        """A row for each port, with what became of its interrupts; "" for all partitions. NOT_FOUND."""

    async def sched(self) -> Mapping[str, Any]:
        """The scheduler's mechanism and its books: {partitions: [...], mechanism, now_ns, ...}."""

    async def schedule(self, name: str, shares: Mapping[str, Any]) -> None:
        """Change a partition's `weight`, `reserve` or `cap`, in the hypervisor's units. NOT_FOUND."""

    async def hypervisor(self) -> Mapping[str, Any]:
        """What the broker says of itself."""

    async def memory(self, name: str) -> list[Mapping[str, Any]]:
        """{device, gpfn, pages}: what the root uses pages of that partition for. REFUSED."""

    async def integration(self, name: str, service: str, order: Mapping[str, Any]) -> Mapping[str, Any]:
        """Ask a guest, by one of its integration services. REFUSED."""

    async def operate(self, operation: str, name: str, order: Mapping[str, Any]) -> Mapping[str, Any]:
        """Change what runs. REFUSED."""

    async def config(self) -> Mapping[str, Any]:
        """As `runtime.config.model.to_tables` has it."""

    async def reboot(self) -> None:
        """End every partition, and begin again with a new root. REFUSED."""

    async def stop(self) -> None:
        """Begin an orderly end and return at once."""


class Request(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    id: int
    verb: str
    args: dict[str, Any] = {}


class ReplyError(msgspec.Struct, frozen=True):
    status: ManagementStatus
    message: str


class Reply(msgspec.Struct, frozen=True, omit_defaults=True):
    id: int | None  # null: the request was too broken to have one
    ok: bool
    result: dict[str, Any] | None = None
    error: ReplyError | None = None


_Handler = Callable[[Mapping[str, Any]], Awaitable[Mapping[str, Any]]]


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


class _Server:
    def __init__(
        self, control: MachineControl, log: EventLog, socket: TrioSocket, nursery: trio.Nursery
    ) -> None:
        self._control, self._log, self._socket, self._nursery = control, log, socket, nursery
        self._at_once = 0
        self._verbs: Mapping[str, tuple[Mapping[str, type], _Handler]] = {
            "status": ({}, self._status),
            "list": ({}, self._list),
            "show": ({"name": str}, self._show),
            "kill": ({"name": str}, self._kill),
            "crash": ({"how": str}, self._crash),
            "seam": ({"step": str, "passes": int, "deaths": int}, self._seam),
            "crash-driver": ({"name": str, "how": str}, self._crash_driver),
            "seam-driver": ({"name": str, "step": str, "passes": int, "deaths": int}, self._seam_driver),
            "inject": ({"order": dict}, self._inject),
            "heal": ({"number": int}, self._heal),
            "injected": ({}, self._injected),
            "service": ({}, self._service),
            "interrupts": ({"name": str}, self._interrupts),
            "sched": ({}, self._sched),
            "schedule": ({"name": str, "shares": dict}, self._schedule),
            "hypervisor": ({}, self._hypervisor),
            "memory": ({"name": str}, self._memory),
            "integration": ({"name": str, "service": str, "order": dict}, self._integration),
            "operate": ({"operation": str, "name": str, "order": dict}, self._operate),
            "config": ({}, self._config),
            "reboot": ({}, self._reboot),
            "stop": ({}, self._stop),
            "events": ({"since": int}, self._events),
        }

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
            if self._at_once >= REQUESTS_AT_ONCE_MAX:
                busy = f"{self._at_once} requests are under way"
                self._refuse(envelope, request.id, ManagementStatus.BUSY, busy)
                continue
            self._at_once += 1
            self._nursery.start_soon(self._answer, envelope, request)

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

    async def _answer(self, envelope: list[bytes], request: Request) -> None:
        try:
            with trio.fail_after(REQUEST_SECONDS_MAX):
                result = await self._perform(request)
            reply = msgspec.msgpack.encode(Reply(request.id, True, dict(result)))
        except ControlError as error:
            self._refuse(envelope, request.id, error.status, error.message)
        except trio.TooSlowError:
            problem = f"no result within {REQUEST_SECONDS_MAX:g} s"
            self._refuse(envelope, request.id, ManagementStatus.TIMED_OUT, problem)
        except Exception as error:  # one request that fails must not take the machine with it
            problem = f"{type(error).__name__}: {error}"
            self._log.append("management.failed", verb=request.verb, error=problem[:_ERROR_CHARACTERS_MAX])
            self._refuse(envelope, request.id, ManagementStatus.FAILED, problem)
        else:
            self._send(envelope, reply)
        finally:
            self._at_once -= 1

    async def _perform(self, request: Request) -> Mapping[str, Any]:
        if request.verb not in self._verbs:
            known = ", ".join(self._verbs)
            raise ControlError(ManagementStatus.UNKNOWN_VERB, f"{request.verb[:40]!r}; known verbs: {known}")
        kinds, handler = self._verbs[request.verb]
        for name in {**kinds, **request.args}:
            value = request.args.get(name)
            if name not in kinds or type(value) is not kinds[name]:
                wanted = ", ".join(f"{key}: {kind.__name__}" for key, kind in kinds.items()) or "none"
                problem = f"argument {name[:40]!r} of {request.verb}; its arguments: {wanted}"
                raise ControlError(ManagementStatus.BAD_REQUEST, problem)
        return await handler(request.args)

    def _refuse(
        self, envelope: list[bytes], request_id: int | None, status: ManagementStatus, message: str
    ) -> None:
        error = ReplyError(status, message[:_ERROR_CHARACTERS_MAX])
        self._send(envelope, msgspec.msgpack.encode(Reply(request_id, False, error=error)))

    def _send(self, envelope: list[bytes], reply: bytes) -> None:
        """A client that went away, or does not read, loses its reply; nobody waits for it."""
        with contextlib.suppress(PeerGone, trio.ClosedResourceError):
            self._socket.try_send([*envelope, reply])

    async def _status(self, args: Mapping[str, Any]) -> Mapping[str, Any]:
        return await self._control.status()

    async def _list(self, args: Mapping[str, Any]) -> Mapping[str, Any]:
        return {"partitions": await self._control.list_partitions()}

    async def _show(self, args: Mapping[str, Any]) -> Mapping[str, Any]:
        return await self._control.show(args["name"])

    async def _kill(self, args: Mapping[str, Any]) -> Mapping[str, Any]:
        await self._control.kill(args["name"])
        return {}

    async def _crash(self, args: Mapping[str, Any]) -> Mapping[str, Any]:
        await self._control.crash(args["how"])
        return {}

    async def _seam(self, args: Mapping[str, Any]) -> Mapping[str, Any]:
        await self._control.seam(args["step"], args["passes"], args["deaths"])
        return {}

    async def _crash_driver(self, args: Mapping[str, Any]) -> Mapping[str, Any]:
        await self._control.crash_driver(args["name"], args["how"])
        return {}

    async def _seam_driver(self, args: Mapping[str, Any]) -> Mapping[str, Any]:
        await self._control.seam_driver(args["name"], args["step"], args["passes"], args["deaths"])
        return {}

    async def _inject(self, args: Mapping[str, Any]) -> Mapping[str, Any]:
        return {"number": await self._control.inject(args["order"])}

    async def _heal(self, args: Mapping[str, Any]) -> Mapping[str, Any]:
        await self._control.heal(args["number"] or None)
        return {}

    async def _injected(self, args: Mapping[str, Any]) -> Mapping[str, Any]:
        return {"injected": await self._control.injected()}

    async def _service(self, args: Mapping[str, Any]) -> Mapping[str, Any]:
        await self._control.service()
        return {}

    async def _memory(self, args: Mapping[str, Any]) -> Mapping[str, Any]:
        return {"memory": await self._control.memory(args["name"])}

    async def _integration(self, args: Mapping[str, Any]) -> Mapping[str, Any]:
        return await self._control.integration(args["name"], args["service"], args["order"])

    async def _operate(self, args: Mapping[str, Any]) -> Mapping[str, Any]:
        return await self._control.operate(args["operation"], args["name"], args["order"])

    async def _config(self, args: Mapping[str, Any]) -> Mapping[str, Any]:
        return await self._control.config()

    async def _interrupts(self, args: Mapping[str, Any]) -> Mapping[str, Any]:
        return {"ports": await self._control.interrupts(args["name"])}

    async def _sched(self, args: Mapping[str, Any]) -> Mapping[str, Any]:
        return await self._control.sched()

    async def _schedule(self, args: Mapping[str, Any]) -> Mapping[str, Any]:
        await self._control.schedule(args["name"], args["shares"])
        return {}

    async def _hypervisor(self, args: Mapping[str, Any]) -> Mapping[str, Any]:
        return await self._control.hypervisor()

    async def _reboot(self, args: Mapping[str, Any]) -> Mapping[str, Any]:
        await self._control.reboot()
        return {}

    async def _stop(self, args: Mapping[str, Any]) -> Mapping[str, Any]:
        await self._control.stop()
        return {}

    async def _events(self, args: Mapping[str, Any]) -> Mapping[str, Any]:
        events = self._log.since(args["since"], EVENTS_REPLY_BYTES_MAX)
        return {"events": events, "last_sequence": self._log.last_sequence}
