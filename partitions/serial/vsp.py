"""The server of a serial line: bytes of the guest's into the driver, the driver's to the guest, a thread for each.

What a guest wrote stays in its ring until the driver has taken it. How much of the oldest packet that is stands in the
channel's record, so a successor goes on behind it; what the driver took just before that could be noted, it gets twice.
"""

import contextlib
import os
import select
import struct
import threading
from typing import Final
from zlib import crc32

from bus.byte_pipe import decode_piece, encode_piece, ring_bytes_of
from bus.native import Channel, RingClosed, RingError, RingFull, ServiceBudget
from bus.packets import PacketError, PacketType
from bus.seam import Seam, Step
from bus.trace import Hop
from partitions.sdk.serial import SerialDriver
from partitions.serial.wire import PIECE_BYTES_MAX
from partitions.stack.paying_thread import PayingThread
from partitions.storage.backends import BackendError

STOP_POLL_NS: Final = 100_000_000  # how late `stop` may be seen where nobody closes the channel
POLL_MS: Final = 50  # how often a driver without a descriptor is asked for bytes
_BUSY_S: Final = 0.002  # before a driver that took nothing is asked again; then twice as long, and so on
_BUSY_S_MAX: Final = 0.05
_RECORD: Final = struct.Struct(
    "<IIII"
)  # id, checksum and length of the oldest packet; how much of it was taken
_RECORD_AT: Final = 40  # in a channel's record, behind what the ring and the opening have there
_INBAND: Final = int(PacketType.INBAND)


class DriverMisbehaved(Exception):
    """A driver returned what is no answer. The text says what."""


class SerialVsp:
    """One opening of a line's channel. `serve` runs in one thread; `statistics` may be read from any."""

    def __init__(
        self,
        channel: Channel,
        driver: SerialDriver,
        lock: threading.Lock,
        record: memoryview,
        seam: Seam,
        budget: ServiceBudget | None = None,
    ) -> None:
        """`lock`: of the driver; who has it for ever is stuck. `budget`: the guest's, for our second thread."""
        self._budget = budget or ServiceBudget()
        self._channel, self._driver, self._lock = channel, driver, lock
        self._record, self._seam = record, seam
        self._failure: Exception | None = None
        self.waits_for_guest = False  # also: for whoever is to read what it writes
        self.requests = self.dropped = self.errors = self.bytes_written = self.bytes_read = 0
        self.pieces_sent = 0  # to the guest; its number is a packet's id
        self._piece_bytes = PIECE_BYTES_MAX  # less, where the guest has made a small ring
        self._is_traced = channel.is_traced  # a stamp is for nobody otherwise

    def replay(self) -> None:
        """`serve` finds in the ring what was not taken, and in the record how much of the first packet was."""

    def serve(self, stop: threading.Event) -> None:
        """Until `stop` is set or the channel is closed. Raises RingCorrupt: the guest broke the ring."""
        wake_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        ended = threading.Event()
        reader = threading.Thread(target=self._read_on, args=(wake_fd, ended), name="serial", daemon=True)
        reader.start()
        try:
            while not stop.is_set():
                if self._failure is not None:
                    raise self._failure
                for kind, _, identity, _, payload in self._channel.receive_batch(1, STOP_POLL_NS):
                    if not self._take(kind, identity, payload, stop):
                        return  # not released: a successor goes on with it
        except RingClosed:
            pass
        finally:
            ended.set()
            os.eventfd_write(wake_fd, 1)
            reader.join()
            os.close(wake_fd)

    # -- out of the guest

    def _take(self, kind: int, identity: int, payload: bytes, stop: threading.Event) -> bool:
        self.requests += 1
        self._seam.passing(Step.TAKE)
        try:
            if kind != _INBAND:
                raise PacketError(f"packet type {kind}")
            data = decode_piece(payload)
        except PacketError:
            self.dropped += 1
            data = b""
        if not self._write(data, identity & 0xFFFF_FFFF, stop):
            return False
        self._channel.release()
        self._note(0, 0, 0, 0)
        return True

    def _write(self, data: bytes, identity: int, stop: threading.Event) -> bool:
        """All of it that was not taken before. False: told to stop first."""
        name = identity, crc32(data), len(data)
        *noted, done = _RECORD.unpack_from(self._record, _RECORD_AT)
        at = min(done, len(data)) if tuple(noted) == name else 0
        pause_s = _BUSY_S
        while at < len(data):
            try:
                with self._lock:
                    if self._is_traced:
                        self._channel.stamp(Hop.BACKEND_BEGIN, identity)
                    taken = self._driver.write(data[at:])
                    if self._is_traced:
                        self._channel.stamp(Hop.BACKEND_END, identity)
            except BackendError:
                self.errors += 1
                return True
            if not 0 <= taken <= len(data) - at:
                raise DriverMisbehaved(f"write took {taken} of {len(data) - at} bytes")
            self._seam.passing(Step.EXECUTE)
            at += taken
            self.bytes_written += taken
            self._note(*name, at)
            if taken:
                pause_s = _BUSY_S
                continue
            self.waits_for_guest = True
            try:
                if self._channel.is_closed or stop.wait(pause_s):
                    return False
            finally:
                self.waits_for_guest = False
            pause_s = min(2 * pause_s, _BUSY_S_MAX)
        return True

    def _note(self, identity: int, checksum: int, length: int, taken: int) -> None:
        _RECORD.pack_into(self._record, _RECORD_AT, identity, checksum, length, taken)

    # -- into the guest

    def _read_on(self, wake_fd: int, ended: threading.Event) -> None:
        """In a thread of its own. Only here something is sent on the channel."""
        poller, paying = select.poll(), PayingThread(self._budget, ended.wait)
        poller.register(wake_fd, select.POLLIN)
        try:
            descriptor = self._driver.descriptor
            if descriptor is not None:
                poller.register(descriptor, select.POLLIN)
            while not ended.is_set():
                ready = dict(poller.poll(POLL_MS))
                if self._is_traced:
                    self._channel.stamp(Hop.WAKE)
                if descriptor is not None and ready.get(descriptor, 0) & ~select.POLLIN:
                    ended.wait(POLL_MS / 1000)  # it has hung up, and poll says so at once, every time
                with contextlib.suppress(RingFull):
                    while not ended.is_set() and self._pass_in():
                        paying.pace()
                paying.pace()
        except RingError:
            return  # the channel is closed; or the guest broke it, which the other thread finds out
        except Exception as error:
            self._failure = error

    def _pass_in(self) -> bool:
        """False: no bytes wait, or there is no room for them: they wait where they are."""
        try:
            if not self._channel.wait_writable(ring_bytes_of(self._piece_bytes), POLL_MS * 1_000_000):
                return False
        except ValueError:  # a ring of one page never has so much room; it has for half of it
            self._piece_bytes //= 2
            return True
        if not self._lock.acquire(
            timeout=POLL_MS / 1000
        ):  # the driver is stuck: whoever ends us waits for no lock
            return False
        try:
            if self._is_traced:
                self._channel.stamp(Hop.BACKEND_BEGIN)
            data = self._driver.read(self._piece_bytes)
            if self._is_traced:
                self._channel.stamp(Hop.BACKEND_END)
        except BackendError:
            self.errors += 1
            return False
        finally:
            self._lock.release()
        if len(data) > self._piece_bytes:
            raise DriverMisbehaved(f"read returned {len(data)} bytes of {self._piece_bytes}")
        if data:
            self._channel.send(encode_piece(data), self.pieces_sent + 1)
            self.pieces_sent += 1
            self.bytes_read += len(data)
        return bool(data)

    def statistics(self) -> dict[str, int]:
        return {
            "requests": self.requests,
            "errors": self.errors,
            "dropped": self.dropped,
            "bytes_read": self.bytes_read,
            "bytes_written": self.bytes_written,
        }
