"""A learning switch: ports in, frames forwarded. No thread, no descriptor, no wire format.

A frame goes to the port where its destination is; if nobody knows, to all others; never back. A guest's own address
belongs to its port and can't be learned elsewhere: a frame that claims another guest's is dropped. Other addresses are
learned from whoever used them last, up to a bound.
"""

import threading
from collections.abc import Sequence
from typing import Final, Protocol

from partitions.net.capture import Capture
from partitions.net.frames import ADDRESS_BYTES

LEARNED_MAX: Final = 1024  # addresses beside the ports' own; what is not learned is flooded
CAPTURES_MAX: Final = 8  # of one switch at a time
_HEADS: Final = 2 * ADDRESS_BYTES  # destination and source


class SwitchPort(Protocol):
    """Where frames go."""

    @property
    def mac(self) -> bytes | None:
        """Its own address; None: behind it may be any number."""

    def accepts(self, address: bytes) -> bool: ...
    def deliver(self, frames: Sequence[memoryview], *, patient: bool) -> None:
        """Of a broadcast nobody waits for anybody."""


class TooManyCaptures(Exception):
    """The text says how many there are."""


class LearningSwitch:
    """`forward` may be called by several threads at a time, each for its own port."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards changes of what follows
        self._ports: tuple[SwitchPort, ...] = ()
        self._own: dict[bytes, SwitchPort] = {}
        self._learned: dict[bytes, SwitchPort] = {}
        self._stuck: threading.Event | None = None
        self._captures: tuple[Capture, ...] = ()
        self.forwarded = self.flooded = self.spoofed = 0  # about: threads count at the same time

    def join(self, port: SwitchPort) -> None:
        with self._lock:
            self._ports = (*(one for one in self._ports if one is not port), port)
            if port.mac is not None:
                self._own[port.mac] = port
                self._learned.pop(port.mac, None)

    def leave(self, port: SwitchPort) -> None:
        with self._lock:
            self._ports = tuple(one for one in self._ports if one is not port)
            for table in (self._own, self._learned):
                for address in [address for address, one in table.items() if one is port]:
                    del table[address]

    @property
    def ports(self) -> tuple[SwitchPort, ...]:
        return self._ports

    def forward(self, source: SwitchPort, frames: Sequence[memoryview]) -> None:
        """Frames that came in at `source`, each with an Ethernet header."""
        if self._stuck is not None:
            self._stuck.wait()
        captures = self._captures
        for capture in captures:
            capture.came_in(source.mac, frames)
        waiting: dict[SwitchPort, list[memoryview]] = {}  # of ports that are worth waiting for
        others: dict[SwitchPort, list[memoryview]] = {}
        head, targets = b"", list[list[memoryview]]()
        for frame in frames:
            if (this := bytes(frame[:_HEADS])) != head:
                head = this
                targets = self._targets(source, head, waiting, others)
            for target in targets:
                target.append(frame)
        for capture in captures:
            for port, batch in (*waiting.items(), *others.items()):
                capture.goes_out(port.mac, batch)
        for port, batch in waiting.items():
            port.deliver(batch, patient=True)
        for port, batch in others.items():
            port.deliver(batch, patient=False)
        self.forwarded += len(frames)

    def watch(self, capture: Capture) -> None:
        """TooManyCaptures."""
        with self._lock:
            if len(self._captures) >= CAPTURES_MAX:
                raise TooManyCaptures(f"{CAPTURES_MAX} captures run on this network already")
            self._captures = (*self._captures, capture)

    def unwatch(self, capture: Capture) -> None:
        with self._lock:
            self._captures = tuple(one for one in self._captures if one is not capture)

    def end_captures(self) -> None:
        """The network goes: who captures is told the end."""
        for capture in self._captures:
            capture.end()

    def _targets(
        self,
        source: SwitchPort,
        head: bytes,
        waiting: dict[SwitchPort, list[memoryview]],
        others: dict[SwitchPort, list[memoryview]],
    ) -> list[list[memoryview]]:
        """Where frames with this head are to be put."""
        destination, sender = head[:ADDRESS_BYTES], head[ADDRESS_BYTES:]
        if not self._learn(source, sender):
            self.spoofed += 1
            return []
        if not destination[0] & 1:
            port = self._own.get(destination) or self._learned.get(destination)
            if port is not None:
                if port is source or not port.accepts(destination):
                    return []
                return [self._batch(port, waiting, others)]
        self.flooded += 1
        return [
            self._batch(port, others, waiting)
            for port in self._ports
            if port is not source and port.accepts(destination)
        ]

    @staticmethod
    def _batch(
        port: SwitchPort,
        wanted: dict[SwitchPort, list[memoryview]],
        other: dict[SwitchPort, list[memoryview]],
    ) -> list[memoryview]:
        """A port's frames stay in their order, so all of one call are in one batch."""
        if (batch := other.get(port)) is not None:
            return batch
        return wanted.setdefault(port, [])

    def _learn(self, source: SwitchPort, sender: bytes) -> bool:
        """False: it is not the source's to use."""
        if sender[0] & 1:
            return False
        if (owner := self._own.get(sender)) is not None:
            return owner is source
        if self._learned.get(sender) is not source:
            with self._lock:
                if source in self._ports and (sender in self._learned or len(self._learned) < LEARNED_MAX):
                    self._learned[sender] = source
        return True

    def stick(self) -> None:
        """A fault on purpose: whoever forwards from now on never comes back."""
        self._stuck = threading.Event()

    def statistics(self) -> dict[str, int]:
        return {
            "ports": len(self._ports),
            "learned": len(self._learned),
            "forwarded": self.forwarded,
            "flooded": self.flooded,
            "spoofed": self.spoofed,
        }
