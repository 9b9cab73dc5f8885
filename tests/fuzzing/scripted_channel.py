"""A channel whose other end is an input: its packets come one after the other, and then it is closed.

For what takes a whole ring's ends apart see the fuzzer of the rings; here every packet is whole.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Final, cast

from bus.native import Channel, RingClosed
from bus.packets import PacketType

KINDS: Final = (PacketType.INBAND, PacketType.COMPLETION, PacketType.GPA_DIRECT, 0, 0xFFFF)
INBAND_MARK: Final = b"\0"  # in front of an in-band packet, in a piece of an input

_nothing: Final[Callable[[], None]] = lambda: None  # noqa: E731


class ScriptedChannel:
    """What a server, or a client, of in-band packets needs of a `Channel`."""

    is_traced: Final = False

    def __init__(self, pieces: Sequence[bytes], between: Callable[[], None] = _nothing) -> None:
        """A piece: which of KINDS, one byte, and the payload. `between`: called after each packet was dealt with."""
        self._packets: Iterator[bytes] = iter([piece for piece in pieces if piece])
        self.between = between
        self.sent: list[bytes] = []
        self.given = 0
        self.is_closed = False

    @classmethod
    def of(
        cls, pieces: Sequence[bytes], between: Callable[[], None] = _nothing
    ) -> tuple["ScriptedChannel", Channel]:
        """The script, and the same as whoever is to be deceived takes it."""
        script = cls(pieces, between)
        return script, cast(Channel, script)

    def receive_batch(
        self, max_packets: int, timeout_ns: int = -1
    ) -> list[tuple[int, int, int, bytes, bytes]]:
        assert max_packets >= 1
        if self.given:
            self.between()
        if (piece := next(self._packets, None)) is None:
            self.is_closed = True
            raise RingClosed("the input is over")
        self.given += 1
        return [(int(KINDS[piece[0] % len(KINDS)]), 0, self.given, b"", piece[1:])]

    def release(self) -> None: ...
    def stamp(self, hop: int, transaction_id: int = 0) -> None: ...

    def send(self, payload: bytes, transaction_id: int = 0) -> None:
        self.sent.append(bytes(payload))

    def wait_writable(self, packet_bytes: int, timeout_ns: int = -1) -> bool:
        return True
