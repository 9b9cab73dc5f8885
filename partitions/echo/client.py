"""The guest's end of an echo: one request at a time."""

from typing import Final

from bus.memory import PAGE_BYTES
from bus.native import Channel
from bus.packets import PacketType

_COMPLETION: Final = int(PacketType.COMPLETION)


class Echo:
    """Made by `Partition.open_echo`. One thread."""

    def __init__(self, channel: Channel, data: memoryview, data_gpfn: int) -> None:
        self._channel, self._data, self._gpfn = channel, data, data_gpfn
        self._next_id = 0
        self._pages: dict[int, bytes] = {}

    def exchange(self, request: bytes) -> bytes:
        """In band: through both rings. ValueError: larger than the ring can ever take."""
        self._next_id += 1
        return self._channel.exchange(request, self._next_id)

    def exchange_pages(self, request: bytes) -> bytes:
        """In our own pages, which the server reads and writes; the packets only say where.

        ValueError: more than the channel has pages for.
        """
        length = len(request)
        if length > len(self._data):
            raise ValueError(f"{length} bytes, and the channel has {len(self._data)} for data")
        self._data[:length] = request
        self._next_id += 1
        self._channel.send_gpa_direct(b"", 0, length, self._page_numbers(length), self._next_id)
        packet = self._channel.receive()
        assert packet is not None  # no timeout was given
        self._channel.release()
        if packet[0] != _COMPLETION or packet[2] != self._next_id:
            raise ValueError(
                f"packet type {packet[0]} with id {packet[2]}, and the answer to {self._next_id} was due"
            )
        return bytes(self._data[:length])

    def _page_numbers(self, length: int) -> bytes:
        if length not in self._pages:
            count = -(-length // PAGE_BYTES)
            self._pages[length] = b"".join(
                number.to_bytes(8, "little") for number in range(self._gpfn, self._gpfn + count)
            )
        return self._pages[length]
