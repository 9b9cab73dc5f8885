"""Guests and a switch at the two ends of real channels, each server in a thread, for tests."""

import mmap
import os
import random
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

from bus.memory import PAGE_BYTES
from bus.native import Channel, GpaMap, RingError
from bus.packets import GpaRange
from partitions.net.frames import MTU_MAX
from partitions.net.nic import Nic
from partitions.net.server_session import Adapter
from partitions.net.switch import LearningSwitch
from partitions.net.vsp import NetVsp
from partitions.stack.channel_client import ChannelClient
from tests.partitions.storage_pair import FIRST_GPFN, JOIN_S, guest_end, host_end
from tests.patience import WAIT_S

RECEIVE_GPADL, SEND_GPADL = 0xE1E11, 0xE1E12
RECORD_BYTES = 64
TYPE = b"\x88\xb5"


def frame(to: bytes, sender: bytes, number: int, size: int = 60) -> bytes:
    body = random.Random(number).randbytes(size)
    return to + sender + TYPE + number.to_bytes(4, "big") + body


def drain(nic: Nic, count: int, timeout_s: float = WAIT_S) -> list[bytes]:
    """Until there are so many, or no more come."""
    found: list[bytes] = []
    while len(found) < count and (more := nic.receive(512, timeout_s)):
        found += more
    return found


@dataclass
class NetPair:
    """One guest's channel, before anything was said on it."""

    guest: Channel
    switch: LearningSwitch
    adapter: Adapter
    gpa_map: GpaMap
    client: ChannelClient
    memory: mmap.mmap
    ring_bytes: int
    bells: tuple[int, int]  # to the host, to the guest
    receive: memoryview
    send: memoryview
    record: memoryview = field(default_factory=lambda: memoryview(bytearray(RECORD_BYTES)))
    failures: list[RingError] = field(default_factory=list)
    vsp: NetVsp | None = None
    _stop: threading.Event = field(default_factory=threading.Event)
    _host: Channel | None = None
    _thread: threading.Thread | None = None

    def attach(self) -> NetVsp:
        """A server on the rings as they are, that has done nothing yet."""
        self._host = host_end(self.memory, self.ring_bytes, *self.bells, "block")
        self.vsp = NetVsp(self._host, self.gpa_map, self.client, self.switch, self.adapter, self.record)
        return self.vsp

    def start(self) -> NetVsp:
        """A server, or a successor."""
        vsp, self._stop = self.attach(), threading.Event()

        def serve() -> None:
            try:
                vsp.replay()
                vsp.serve(self._stop)
            except RingError as error:
                self.failures.append(error)

        self._thread = threading.Thread(target=serve, daemon=True)
        self._thread.start()
        return vsp

    def end(self) -> None:
        """The server ends between two batches."""
        self._stop.set()
        if self._host is not None:
            self._host.close()
        if self._thread is not None:
            self._thread.join(JOIN_S)
            assert not self._thread.is_alive()
        self._thread = self._host = None

    def nic(self, *, mtu: int = MTU_MAX, promiscuous: bool = False) -> Nic:
        return Nic(
            self.guest,
            self.receive,
            RECEIVE_GPADL,
            self.send,
            SEND_GPADL,
            mtu=mtu,
            promiscuous=promiscuous,
            set_up_timeout_s=10,
        )


@contextmanager
def net_pair(
    switch: LearningSwitch,
    number: int = 1,
    *,
    mtu: int = 1500,
    receive_bytes: int = 1 << 20,
    send_bytes: int = 1 << 18,
    ring_pages: int = 16,
    serves: bool = True,
    scattered: bool = False,
) -> Iterator[NetPair]:
    """`scattered`: the guest lends its buffers' pages in another order than they stand in memory."""
    ring_bytes = ring_pages * PAGE_BYTES
    rings = 2 * (PAGE_BYTES + ring_bytes)
    memory = mmap.mmap(-1, rings + receive_bytes + send_bytes)
    view = memoryview(memory)
    bells = os.eventfd(0, os.EFD_NONBLOCK), os.eventfd(0, os.EFD_NONBLOCK)
    to_host, to_guest = bells
    guest = guest_end(memory, ring_bytes, to_host, to_guest)
    gpa_map = GpaMap(4096)
    first = FIRST_GPFN + rings // PAGE_BYTES
    if scattered:  # each page by itself, so no two of them come as one view
        for page in range(len(memory) // PAGE_BYTES):
            gpa_map.add(FIRST_GPFN + 2 * page, view[page * PAGE_BYTES : (page + 1) * PAGE_BYTES])
    else:
        gpa_map.add(FIRST_GPFN, memory)

    def lent(at: int, size: int) -> GpaRange:
        if not scattered:
            return GpaRange.contiguous(first + at // PAGE_BYTES, size)
        pages = range((rings + at) // PAGE_BYTES, (rings + at + size) // PAGE_BYTES)
        return GpaRange(0, size, b"".join((FIRST_GPFN + 2 * page).to_bytes(8, "little") for page in pages))

    buffers = {RECEIVE_GPADL: lent(0, receive_bytes), SEND_GPADL: lent(receive_bytes, send_bytes)}
    pair = NetPair(
        guest,
        switch,
        Adapter(bytes((0, 0x15, 0x5D, 0, 0, number)), mtu),
        gpa_map,
        ChannelClient(number, buffers.__getitem__),
        memory,
        ring_bytes,
        bells,
        view[rings : rings + receive_bytes],
        view[rings + receive_bytes :],
    )
    with ExitStack() as undo:
        for bell in bells:
            undo.callback(os.close, bell)
        undo.callback(guest.close)
        undo.callback(pair.end)
        if serves:
            pair.start()
        yield pair
