"""The guest's end of a serial line: write and read bytes. One thread may write while another reads.

    with partition.open_serial("serial0") as line:
        line.write(b"hello\\r\\n")
        answer = line.read(64, timeout_s=1)

What `write` took is in the ring, which outlives whoever serves it: none of it is lost, and at most the last piece comes
twice when that one dies.
"""

import time
from typing import Final

from bus.byte_pipe import decode_piece, encode_piece, ring_bytes_of
from bus.native import Channel, RingClosed, RingCorrupt, RingError
from bus.packets import PacketError
from partitions.serial.wire import PIECE_BYTES_MAX

READ_PACKETS: Final = 16
SENT_BYTES_MAX: Final = 32 << 10  # made packets of at a time
_NS_PER_S: Final = 1_000_000_000
_RING_SLACK_BYTES: Final = 16  # so much of a ring a packet can never have


class SerialClosedError(Exception):
    """The channel is gone, for good."""


class SerialLine:
    """A line, open from the start."""

    def __init__(self, channel: Channel, ring_bytes: int) -> None:
        self.channel: Final = channel
        self._channel, self._ring_bytes = channel, ring_bytes
        self._piece_bytes = min(PIECE_BYTES_MAX, ring_bytes // 2)  # of a small ring
        self._next_id = 1
        self._read = bytearray()  # taken in, and not asked for
        self._at_end = False
        self.bytes_written = self.bytes_read = self.malformed = 0

    def write(self, data: bytes, timeout_s: float | None = None) -> int:
        """How many bytes were taken: all, unless `timeout_s` passed while nobody took what is in the ring."""
        deadline, at = _deadline(timeout_s), 0
        try:
            while at < len(data):
                ends = range(at, min(at + SENT_BYTES_MAX, len(data)), self._piece_bytes)
                pieces = [data[start : start + self._piece_bytes] for start in ends]
                sent = self._channel.send_many([encode_piece(piece) for piece in pieces], self._next_id)
                if not sent and not self._channel.wait_writable(
                    ring_bytes_of(len(pieces[0])), _left(deadline)
                ):
                    break
                self._next_id += sent
                at += sum(map(len, pieces[:sent]))
        except (RingClosed, RingCorrupt) as error:
            raise SerialClosedError(str(error)) from error
        self.bytes_written += at
        return at

    def flush(self, timeout_s: float | None = None) -> bool:
        """Until the driver has taken all that was written. False: `timeout_s` passed first."""
        try:
            empty = self._ring_bytes - _RING_SLACK_BYTES
            return self._channel.wait_writable(empty, _left(_deadline(timeout_s)))
        except (RingClosed, RingCorrupt) as error:
            raise SerialClosedError(str(error)) from error

    def read(self, limit: int, timeout_s: float | None = None) -> bytes:
        """What is there, at most `limit` bytes; waits for the first. Empty: `timeout_s` is over, or the line ended."""
        deadline = _deadline(timeout_s)
        while not self._read and not self._at_end:
            try:
                payloads = self._channel.receive_payloads(READ_PACKETS, _left(deadline))
            except (RingClosed, RingCorrupt) as error:
                raise SerialClosedError(str(error)) from error
            except RingError:  # something that is no data: nothing that a pipe carries
                self._channel.receive_batch(1, 0)
                self._channel.release()
                self.malformed += 1
                continue
            if not payloads:
                return b""
            for payload in payloads:
                try:
                    data = decode_piece(payload)
                except PacketError:
                    self.malformed += 1
                    continue
                self._at_end |= not data
                self._read += data
        data = bytes(self._read[:limit])
        del self._read[: len(data)]
        self.bytes_read += len(data)
        return data

    def statistics(self) -> dict[str, int]:
        return {
            "bytes_written": self.bytes_written,
            "bytes_read": self.bytes_read,
            "malformed": self.malformed,
        }


def _deadline(timeout_s: float | None) -> int | None:
    return None if timeout_s is None else time.monotonic_ns() + int(timeout_s * _NS_PER_S)


def _left(deadline: int | None) -> int:
    """-1: as long as it takes."""
    return -1 if deadline is None else max(deadline - time.monotonic_ns(), 0)
