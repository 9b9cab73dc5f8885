"""The server's end of a ring that is served a request at a time, and dies at the steps that bus.seam names."""

import contextlib
import os
import struct
from typing import Final

from bus.native import Channel
from bus.seam import Step
from partitions.simulated.process import DeadlySeam, Died
from partitions.stack.served_channel import RingPlacement

Packet = tuple[int, int, int, bytes, bytes]
_INDEX: Final = struct.Struct("<I")


def rung(bell_fd: int) -> bool:
    """Whether a doorbell has rung since it was last asked."""
    try:
        os.eventfd_read(bell_fd)
    except BlockingIOError:
        return False
    return True


class OneTurn:
    """A `stop` that has a server serve once."""

    def __init__(self) -> None:
        self._looks = 0

    def is_set(self) -> bool:
        self._looks += 1
        return self._looks > 1


class SteppedChannel:
    """A bus.native.Channel, as far as a storage server uses it. It never waits.

    The native seam would kill this process; so the steps are passed here, and what a death between two of them would
    have left undone in C is undone.
    """

    def __init__(self, native: Channel, seam: DeadlySeam, rings: RingPlacement, guest_bell: int) -> None:
        """`guest_bell`: the guest's doorbell, which `native` rings."""
        self.native: Final = native
        self._seam, self._guest_bell = seam, guest_bell
        start = rings.downstream_page_offset * 4096
        self._index: Final = rings.memory[
            start : start + _INDEX.size
        ]  # where answers end, in the ring's header
        self._held: list[Packet] = []
        self._again = False
        self.rings_guest = False  # since it was last asked

    @property
    def is_closed(self) -> bool:
        return self.native.is_closed

    def receive_batch(self, most: int, timeout_ns: int = -1) -> list[Packet]:
        if self._again:
            self._again = False
            return self._held
        self._held = self.native.receive_batch(most, 0)
        return self._held

    def serve_again(self) -> None:
        """What was held is given out once more: who had it did not come to its end."""
        self._again = bool(self._held)

    def wait_writable(self, packet_bytes: int, timeout_ns: int = -1) -> bool:
        return self.native.wait_writable(packet_bytes, 0)

    def send_completion(self, payload: bytes, identity: int, ring: bool = True) -> None:
        before = bytes(self._index)
        self.native.send_completion(payload, identity, ring)
        try:
            self._seam.passing(Step.COMMIT)
        except Died:
            self._index[:] = before  # the journal says what was to be published; nobody sees it
            rung(self._guest_bell)
            raise
        self._seam.passing(Step.PUBLISH)
        if ring:
            self.rings_guest = rung(self._guest_bell) or self.rings_guest

    def release(self) -> None:
        self._held = []
        self.native.release()
        signals = rung(self._guest_bell)
        self._seam.passing(Step.RELEASE)
        if signals:
            self._seam.passing(Step.SIGNAL)
            self.rings_guest = True

    def take_signal(self) -> bool:
        """Whether the guest is to be woken."""
        signals, self.rings_guest = self.rings_guest, False
        return signals

    def kick(self) -> None:
        """The guest is woken, whatever it does."""
        self.native.kick()
        self.rings_guest = rung(self._guest_bell) or self.rings_guest

    def close(self) -> None:
        self.native.close()
        with contextlib.suppress(ValueError):
            self._index.release()
