"""A disk's NBD server: trio lets clients in and negotiates, one thread in C serves all of them from then on."""

import socket
import threading
from collections import deque
from collections.abc import Callable
from typing import Final

import trio

from bus.native import Channel, RingClosed, RingCorrupt
from partitions.nbd.negotiation import Negotiation, Outcome
from partitions.nbd.wire import ExportDescription, error_of
from partitions.storage._blockio import (
    MAX_TRANSFER_BYTES,
    NBD_CONNECTIONS_MAX,
    NBD_ENDED_BROKEN,
    NBD_ENDED_LOST,
    NbdEngine,
)
from partitions.storage.disk import Disk
from partitions.storage.errors import command_error
from partitions.storage.identity import UNMAP_BYTES_MAX
from partitions.storage.protocol import MalformedPacket, Packet, ScsiRequest
from runtime.abi import PAGE_BYTES

POOL_BYTES: Final = 16 << 20  # of the channel's data area, shared out among all clients
NEGOTIATIONS_MAX: Final = 16  # at once; the next client waits in the socket's backlog
NEGOTIATION_SECONDS_MAX: Final = 10.0
LEAVE_SECONDS_MAX: Final = 2.0  # for what clients have asked for, when the export ends
_ENDINGS: Final = {NBD_ENDED_LOST: "it went without taking leave", NBD_ENDED_BROKEN: "it broke the protocol"}

Report = Callable[..., None]


class NotExportable(Exception):
    """This disk can't be exported. One line for the user."""


class NbdExport:
    """Owns the disk's channel as long as it serves. `report(kind, **fields)` tells of clients."""

    def __init__(self, disk: Disk, listener: socket.socket, name: str, report: Report) -> None:
        """NotExportable: the disk is not behind a ring."""
        if not isinstance(disk.channel, Channel):
            raise NotExportable(
                'an export needs a ring to its disk, and architecture = "microkernel" has none: choose another one'
            )
        self._disk, self._listener, self._report = disk, listener, report
        self._buffer = disk.allocate(disk.pool.longest_run_bytes)
        told = disk.description
        largest = min(disk.max_transfer_bytes, MAX_TRANSFER_BYTES) // PAGE_BYTES * PAGE_BYTES
        self._engine: NbdEngine | None = NbdEngine(
            disk.channel,
            self._buffer.view,
            self._buffer.gpfn,
            disk.block_bytes,
            told.capacity.blocks,
            largest,
            UNMAP_BYTES_MAX,
            told.read_only,
            told.can_discard,
            disk.requests.sequence,
        )
        self.description: Final = ExportDescription(
            name=name,
            description=f"partvisor disk, serial {told.serial}",
            size_bytes=disk.size_bytes,
            block_bytes=disk.block_bytes,
            preferred_bytes=PAGE_BYTES,
            max_payload_bytes=self._engine.max_payload_bytes,
            read_only=told.read_only,
            can_discard=told.can_discard,
        )
        self._arrived: deque[socket.socket] = deque()
        self._admitted = 0  # clients with an export, or about to get it
        self._lock = threading.Lock()
        self._leaving = False
        self._failure: str | None = None
        self._over = trio.Event()

    @property
    def uri(self) -> str:
        """For NBD clients on this host."""
        return f"nbd+unix:///{self.description.name}?socket={self._listener.getsockname()}"

    async def serve(self, stop: trio.Event) -> None:
        """Until `stop`. NotExportable: the disk is gone."""
        token = trio.lowlevel.current_trio_token()
        thread = threading.Thread(target=self._transmit, args=(token,), name="nbd", daemon=True)
        thread.start()
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._accept, nursery)
                nursery.start_soon(self._until_over, nursery.cancel_scope)
                await stop.wait()
                nursery.cancel_scope.cancel()
        finally:
            self._leaving = True
            if (engine := self._engine) is not None:
                engine.wake()
            with trio.CancelScope(shield=True):
                await self._over.wait()
            thread.join()
        if self._failure is not None:
            raise NotExportable(self._failure)

    async def _until_over(self, scope: trio.CancelScope) -> None:
        await self._over.wait()
        scope.cancel()

    # -- letting in

    async def _accept(self, nursery: trio.Nursery) -> None:
        listener = trio.socket.from_stdlib_socket(self._listener)
        room = trio.CapacityLimiter(NEGOTIATIONS_MAX)
        while True:
            who = object()
            await room.acquire_on_behalf_of(who)
            client, _ = await listener.accept()
            nursery.start_soon(self._let_in, client, room, who)

    async def _let_in(self, client: trio.socket.SocketType, room: trio.CapacityLimiter, who: object) -> None:
        """One client, until it has its export; whatever it does, nobody else is hurt."""
        admitted = False

        def admit() -> bool:
            nonlocal admitted
            with self._lock:
                admitted = self._admitted < NBD_CONNECTIONS_MAX
                self._admitted += admitted
            return admitted

        try:
            with client, trio.move_on_after(NEGOTIATION_SECONDS_MAX):
                if await _negotiate(trio.SocketStream(client), Negotiation(self.description, admit)):
                    self._hand_over(client)
                    admitted = False  # the engine tells when it ends
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        finally:
            if admitted:
                self._dismiss()
            room.release_on_behalf_of(who)

    def _hand_over(self, client: trio.socket.SocketType) -> None:
        self._arrived.append(socket.socket(fileno=_duplicate(client)))
        if (engine := self._engine) is not None:
            engine.wake()

    def _dismiss(self) -> None:
        with self._lock:
            self._admitted -= 1

    # -- the thread

    def _transmit(self, token: trio.lowlevel.TrioToken) -> None:
        engine = self._engine
        assert engine is not None
        try:
            while not self._leaving:
                engine.run(-1)
                self._attend(engine, token)
            engine.leave()
            engine.run(0)
            self._attend(engine, token)
            if engine.statistics()["connections"]:
                engine.run(int(LEAVE_SECONDS_MAX * 1e9))
        except (RingClosed, RingCorrupt) as error:
            self._failure = f"the disk is gone: {type(error).__name__}"
        finally:
            self._disk.requests.sequence = max(self._disk.requests.sequence, engine.sequence)
            self._report("nbd_over", **engine.statistics())
            self._engine = None
            del engine  # closes what is open
            token.run_sync_soon(self._over.set)

    def _attend(self, engine: NbdEngine, token: trio.lowlevel.TrioToken) -> None:
        for fragment, packet in engine.take_failed():
            engine.settle(fragment, error_of(_errno_of(packet)))
        for number, ending in engine.take_ended():
            self._dismiss()
            if ending in _ENDINGS:
                self._report("nbd_client_lost", client=number, reason=_ENDINGS[ending])
        while self._arrived:
            with self._arrived.popleft() as client:
                if engine.attach(client.fileno()) < 0:
                    self._dismiss()


def _duplicate(client: trio.socket.SocketType) -> int:
    with socket.socket(fileno=client.fileno()) as plain:
        try:
            return plain.dup().detach()
        finally:
            plain.detach()


async def _negotiate(stream: trio.SocketStream, negotiation: Negotiation) -> bool:
    """Whether the client is to be served."""
    await stream.send_all(negotiation.greeting)
    outcome = Outcome.GO_ON
    while outcome is Outcome.GO_ON:
        data = b""
        while len(data) < negotiation.wants:
            piece = await stream.receive_some(negotiation.wants - len(data))
            if not piece:
                return False
            data += piece
        reply, outcome = negotiation.receive(data)
        if reply:
            await stream.send_all(reply)
    return outcome is Outcome.TRANSMIT


def _errno_of(packet: bytes) -> int:
    """What a completion that is no success says."""
    try:
        reply = Packet.parse(packet)
        error = command_error(reply.status, ScsiRequest.parse(reply.body))
    except MalformedPacket:
        return 0
    return 0 if error is None else error.errno
