"""The guest's end of its integration services: a thread for each, which sleeps until its host asks for something.

    integration = partition.integration
    integration.key_values.publish("role", "database")
    while not integration.stopping.wait(1):          # set when the host wants us to end
        with integration.writing():                  # not in the middle of a backup
            disk.write(0, block)
            disk.write(512, block)

A program that never asks for `stopping` gets SIGTERM instead, as when a machine stops.
"""

import contextlib
import os
import platform
import signal
import socket
import sys
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Final

from bus.native import RingError, RingFull
from bus.packets import PacketType
from partitions.integration.bodies import (
    NO_AUTO_RECOVERY,
    NS_PER_TICK,
    Health,
    Heartbeat,
    Kvp,
    Pool,
    Shutdown,
    Snapshot,
    SnapshotOperation,
    TimeSync,
    wall_ns_of,
)
from partitions.integration.guest_session import GuestSession, Reply, Request
from partitions.integration.key_values import KeyValues
from partitions.integration.quiet_times import QuietTimes
from partitions.integration.services import (
    HEARTBEAT,
    KEY_VALUE,
    RING_BYTES,
    SERVICES,
    SHUTDOWN,
    SNAPSHOT,
    TIME_SYNC,
    IcService,
)
from partitions.integration.wire import IcError, Status, answer_to
from partitions.saved_program import StateKeeper
from partitions.vsc.channel import GuestChannel
from partitions.vsc.vmbus import VmbusGuest
from runtime.hypercalls.caller import HypercallPort

QUIESCE_S_MAX: Final = 4.0  # for what is being written to end; the host waits a second longer
FROZEN_S_MAX: Final = 12.0  # longer than the host: it ends a quiet time, we do only if it does not
_JOIN_S: Final = 1.0
_INBAND: Final = int(PacketType.INBAND)


class Integration:
    """Every service, from the start."""

    def __init__(
        self, name: str, vmbus: VmbusGuest, hypercalls: HypercallPort, reference_time: Callable[[], int]
    ) -> None:
        """Of the partition of that name. `reference_time`: its own, in 100 ns.

        Raises VmbusError: the host does not offer them; the config wants integration = true.
        """
        self._reference_time = reference_time
        self.key_values: Final = KeyValues()
        self.health = Health.HEALTHY  # what the host is told
        self.on_freeze: Callable[[], None] = lambda: (
            None
        )  # once nobody writes; what it raises refuses the freeze
        self.on_save: Callable[[], bytes] | None = None  # what the program is to know when it goes on
        self._keeper = StateKeeper(hypercalls)
        self.on_thaw: Callable[[], None] = lambda: None
        self.malformed = 0
        self.last_shutdown: Shutdown | None = None
        self.last_time: TimeSync | None = None
        self._stopping = threading.Event()
        self._is_asked_for = False
        self._quiet = QuietTimes()
        for key, value in {
            "FullyQualifiedDomainName": socket.gethostname(),
            "OSName": platform.system(),
            "OSVersion": platform.release(),
            "PartitionName": name,
        }.items():
            self.key_values.publish(key, value, Pool.AUTO)
        handlers: dict[IcService, Callable[[Request], tuple[bytes, int]]] = {
            HEARTBEAT: self._beat,
            SHUTDOWN: self._shut_down,
            TIME_SYNC: self._set_time,
            KEY_VALUE: self._key_value,
            SNAPSHOT: self._snapshot,
        }
        self._channels: list[GuestChannel] = []
        self._threads: list[threading.Thread] = []
        for service in SERVICES:
            offer = vmbus.find_offer(service.interface, service.instance)
            opened = vmbus.open_channel(offer, ring_bytes=RING_BYTES, data_bytes=0, waiting="block")
            self._channels.append(opened)
            thread = threading.Thread(
                target=self._serve,
                args=(service, opened, handlers[service]),
                name=service.device,
                daemon=True,
            )
            thread.start()
            self._threads.append(thread)

    # -- for the program

    @property
    def stopping(self) -> threading.Event:
        """Set when the host wants the partition to end. Who asks for it ends by itself, and gets no SIGTERM."""
        self._is_asked_for = True
        return self._stopping

    def writing(self) -> AbstractContextManager[None]:
        """What is written in here is copied whole, or not at all: see QuietTimes."""
        return self._quiet.writing()

    @property
    def wants_quiet(self) -> bool:
        """Whether who is in `writing` is waited for, or waits."""
        return self._quiet.is_wanted

    def host_time_ns(self) -> int | None:
        """The host's clock, ns since 1970, by what it has told us last and by our own reference time. None: nothing."""
        told = self.last_time
        if told is None:
            return None
        since = self._reference_time() - told.reference_time if told.reference_time else 0
        return wall_ns_of(told.host_time) + since * NS_PER_TICK

    def close(self) -> None:
        for opened in self._channels:
            opened.close()
        for thread in self._threads:
            thread.join(_JOIN_S)

    # -- serving

    def _serve(
        self, service: IcService, opened: GuestChannel, handle: Callable[[Request], tuple[bytes, int]]
    ) -> None:
        session, channel = GuestSession(service), opened.channel
        with contextlib.suppress(RingError):
            while True:
                for kind, _, identity, _, payload in channel.receive_batch(1, -1):
                    answer = None
                    try:
                        if kind != _INBAND:
                            raise IcError(f"packet type {kind}")
                        match session.receive(payload):
                            case Reply(data):
                                answer = data
                            case Request() as request:
                                answer = answer_to(request.message, *handle(request)).encode()
                    except IcError:
                        self.malformed += 1
                    if answer is not None:
                        with contextlib.suppress(RingFull):  # a host that does not read wants no answer
                            channel.send(answer, identity)
                    channel.release()
                if service is SHUTDOWN and self.last_shutdown is not None:
                    self._end()

    def _end(self) -> None:
        """Behind the answer."""
        if not self._stopping.is_set():
            self._stopping.set()
            if not self._is_asked_for:
                os.kill(os.getpid(), signal.SIGTERM)

    def _beat(self, request: Request) -> tuple[bytes, int]:
        beat = Heartbeat.decode(request.message.body)
        return Heartbeat((beat.sequence + 1) & 2**64 - 1, self.health).encode(), Status.OK

    def _shut_down(self, request: Request) -> tuple[bytes, int]:
        wanted = Shutdown.decode(request.message.body)
        self.last_shutdown = wanted
        return request.message.body, Status.OK

    def _set_time(self, request: Request) -> tuple[bytes, int]:
        self.last_time = TimeSync.decode(request.message.body, request.version)
        return request.message.body, Status.OK

    def _key_value(self, request: Request) -> tuple[bytes, int]:
        wanted = Kvp.decode(request.message.body)
        answer, status = self.key_values.answer(wanted)
        return request.message.body if status != Status.OK else answer.encode(), status

    def _snapshot(self, request: Request) -> tuple[bytes, int]:
        wanted = Snapshot.decode(request.message.body)
        match wanted.operation:
            case SnapshotOperation.CHECK:
                return Snapshot(wanted.operation, NO_AUTO_RECOVERY).encode(), Status.OK
            case SnapshotOperation.FREEZE:
                return request.message.body, self._freeze()
            case SnapshotOperation.THAW:
                was_quiet = self._quiet.end()
                self.on_thaw()
                return request.message.body, Status.OK if was_quiet else Status.FAIL
        return request.message.body, Status.NOT_SUPPORTED

    def _freeze(self) -> int:
        if not self._quiet.begin(QUIESCE_S_MAX, FROZEN_S_MAX):
            _say(f"it is not at rest: something has been written for longer than {QUIESCE_S_MAX:g} s")
            return Status.FAIL
        try:
            self.on_freeze()
            if self.on_save is not None:
                self._keeper.keep(self.on_save())
        except Exception as error:  # the program's: it has something that can't be left as it is
            self._quiet.end()
            _say(f"it is not at rest: {type(error).__name__}: {error}")
            return Status.FAIL
        return Status.OK


def _say(text: str) -> None:
    """The host is told a status, and nothing else: the reason stands in what its program prints."""
    print(text, file=sys.stderr, flush=True)
