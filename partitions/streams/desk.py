"""Who is connected with whom: the root's part of stream sockets, in its one task.

    guest -> TL_CONNECT_REQUEST, no silo      a program of the host listens at this port of the guest's name
    guest -> TL_CONNECT_REQUEST, with a silo  another guest: it is offered a channel first, and has to open it
    host's program -> "CONNECT 5000\\n"        a guest: likewise; "OK 5000\\n" comes back once it has opened

A connection is a device of its own, offered once. It is bounded, refused where a bound is met, and taken away when it
is over. It does not outlive the root: a successor takes away what there was, and its guests see a reset.
"""

import contextlib
import socket
from collections.abc import Awaitable, Callable, Iterable, Mapping
from itertools import count
from typing import Final
from uuid import UUID, uuid4

import trio

from bus.channel_actions import ConnectStream
from bus.protocol_errors import LocalProtocolError
from partitions.machine_plan import AttachmentPlan
from partitions.stack.stream_answers import StreamBus
from partitions.streams.device import PREFIX, StreamDevice
from partitions.streams.relay import StreamEnd, pair
from partitions.streams.wire import name_of, parse_service, silo_of
from runtime.abi import Route

STREAMS_MAX: Final = 64  # of one guest at a time, also those that are not open yet
CONNECTING_MAX: Final = 16  # of one guest that have not been answered yet
OPEN_S_MAX: Final = 5.0  # for a guest to open what it asked for
ACCEPT_S_MAX: Final = 2.0  # for a guest to open what was offered to its listener; as Hyper-V has it
COMMAND_S_MAX: Final = 5.0  # for a host's program to say what it wants
COMMAND_BYTES_MAX: Final = 64
RING_BYTES: Final = 64 << 10  # of the plan; a guest makes its rings as large as it likes

Dial = Callable[[str, str], Awaitable[socket.socket | None]]  # (guest, service) -> who listens on the host


class StreamDesk:
    """Of one virtualization stack."""

    def __init__(
        self,
        nursery: trio.Nursery,
        guests: Callable[[], Iterable[StreamBus]],
        dial: Dial,
        log: Callable[..., None],
        route: Route,
        has_streams: Mapping[str, bool],
    ) -> None:
        """`has_streams`: by the name of a guest, whether its config allows any."""
        self._nursery, self._guests, self._dial, self._log = nursery, guests, dial, log
        self._route, self._has_streams = route, has_streams
        self._numbers = count(1)
        self._streams: dict[str, int] = {}  # how many each guest has
        self._connecting: dict[str, int] = {}
        self._of_device: dict[str, str] = {}  # whose it is, by a stream's name
        self._token = trio.lowlevel.current_trio_token()

    # -- who asks

    def asked(self, bus: StreamBus, request: ConnectStream) -> None:
        """By a guest."""
        if not self._has_streams.get(bus.name) or self._connecting.get(bus.name, 0) >= CONNECTING_MAX:
            bus.refuse_stream(request)
            return
        self._connecting[bus.name] = self._connecting.get(bus.name, 0) + 1
        self._nursery.start_soon(self._connect, bus, request)

    async def _connect(self, bus: StreamBus, request: ConnectStream) -> None:
        end: StreamEnd | None = None
        try:
            if self._has_room(bus.name):
                end = await self._reach(bus, request)
        finally:
            self._connecting[bus.name] -= 1
        if end is None or not await self._offer(bus, request.service, request.endpoint, end, accept=False):
            with contextlib.suppress(LocalProtocolError):
                bus.refuse_stream(request)

    async def _reach(self, bus: StreamBus, request: ConnectStream) -> StreamEnd | None:
        """The other side's end, connected. None: nobody is there, or takes it."""
        if request.silo is None or not request.silo.int:
            sock = await self._dial(bus.name, name_of(request.service))
            return None if sock is None else StreamEnd(sock)
        target = next((one for one in self._guests() if silo_of(one.name) == request.silo), None)
        if target is None or not self._has_streams.get(target.name):
            return None
        ours, theirs = pair()
        if await self._offer(target, request.service, uuid4(), theirs, accept=True):
            return ours
        ours.close(finished=True)
        return None

    async def serve_host(self, partition: str, sock: socket.socket) -> None:
        """A program of the host, which says first which service of that guest it wants. The socket is closed."""
        sock.setblocking(False)
        asked, service = "", None
        with trio.move_on_after(COMMAND_S_MAX):
            asked = await _read_line(sock)
        verb, _, wanted = asked.partition(" ")
        if verb == "CONNECT":
            with contextlib.suppress(ValueError):
                service = parse_service(wanted.strip())
        bus = next((one for one in self._guests() if one.name == partition), None)
        if service is None or bus is None or not self._has_streams.get(partition):
            sock.close()
            return
        end = StreamEnd(sock, f"OK {wanted.strip()}\n".encode())
        if not await self._offer(bus, service, uuid4(), end, accept=True):
            self._log("stream.refused", guest=partition, service=name_of(service))

    # -- offers

    def _has_room(self, guest: str) -> bool:
        return self._streams.get(guest, 0) < STREAMS_MAX

    async def _offer(
        self, bus: StreamBus, service: UUID, instance: UUID, end: StreamEnd, *, accept: bool
    ) -> bool:
        """Whether the guest has opened it. Otherwise nothing is left of it, the end neither."""
        opened = trio.Event()

        def tell(event: Callable[[], None]) -> None:
            with contextlib.suppress(trio.RunFinishedError):
                self._token.run_sync_soon(event)

        device = StreamDevice(
            next(self._numbers),
            service,
            end,
            accept=accept,
            opened=lambda: tell(opened.set),
            ended=lambda name: tell(lambda: self._over(bus, name)),
        )
        if not self._has_room(bus.name):
            device.close()
            return False
        self._streams[bus.name] = self._streams.get(bus.name, 0) + 1
        self._of_device[device.name] = bus.name
        plan = AttachmentPlan(device.name, RING_BYTES, self._route, "block")
        try:
            bus.offer(instance, device, plan)
        except LocalProtocolError:  # that name is in use, or there are too many channels
            self._forget(device.name)
            device.close()
            return False
        with trio.move_on_after(ACCEPT_S_MAX if accept else OPEN_S_MAX):
            await opened.wait()
        if opened.is_set():
            return True
        device.close()
        self._over(bus, device.name)
        return False

    def _over(self, bus: StreamBus, name: str) -> None:
        if self._forget(name):
            _take_away(bus, name)

    def _forget(self, name: str) -> bool:
        guest = self._of_device.pop(name, None)
        if guest is not None:
            self._streams[guest] -= 1
        return guest is not None


def end_remains(guests: Iterable[StreamBus], names: Iterable[str]) -> None:
    """Streams of a predecessor's: a reset for their guests."""
    names = [name for name in names if name.startswith(PREFIX)]
    for bus in guests:
        for name in names:
            _take_away(bus, name)


def _take_away(bus: StreamBus, name: str) -> None:
    with contextlib.suppress(LocalProtocolError):  # it was taken away already, and the guest has let go of it
        bus.remove(name)


async def _read_line(sock: socket.socket) -> str:
    """Byte by byte: what comes behind it belongs to the guest. "": it is none."""
    line = b""
    while not line.endswith(b"\n") and len(line) <= COMMAND_BYTES_MAX:
        await trio.lowlevel.wait_readable(sock)
        try:
            byte = sock.recv(1)
        except OSError:
            return ""
        if not byte:
            return ""
        line += byte
    return line.decode("ascii", "replace").strip() if line.endswith(b"\n") else ""
