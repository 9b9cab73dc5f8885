"""Rings that a simulated process serves: a storage server on each, one request a turn.

As partitions.stack.served_channel, whose threads are turns of the clock here. Several rings to one device take
turns at it: who hangs in the medium, or has failed in the middle of a request, keeps the others from it.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Final, cast

from bus.memory import PAGE_BYTES
from bus.native import Channel, GpaMap, RingClosed, RingError, Waiting
from bus.seam import Step
from partitions.simulated.costs import Costs
from partitions.simulated.medium import SimulatedMedium
from partitions.simulated.process import DeadlySeam, Process, Suspended
from partitions.simulated.rings import OneTurn, SteppedChannel, rung
from partitions.stack.channel_ports import Doorbells
from partitions.stack.served_channel import RingPlacement
from partitions.storage._blockio import DeviceLock
from partitions.storage.vsp import StorageVsp

_EXECUTING_AT: Final = 8  # in a channel record
_SOON_NS: Final = 1_000_000  # until a ring is looked at again whose guest leaves no room
# Where a thread that serves a request can be when its process is killed from outside.
_PLACES: Final = (None, Step.TAKE, Step.EXECUTE, Step.COMMIT, Step.PUBLISH, Step.RELEASE)


@dataclass(slots=True)
class Turns:
    """Of one device, among the rings of one process."""

    holder: "ServedRing | None" = None
    waiting: "list[ServedRing]" = field(default_factory=list)

    def give_back(self) -> None:
        self.holder = None
        waiting, self.waiting = self.waiting, []
        for ring in waiting:
            ring.look()


class _NoLock:
    """`Turns` keeps the order here."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        pass


@dataclass(frozen=True, slots=True)
class RingParts:
    """What an opening of a channel has. The doorbells are the ring's to close."""

    doorbells: Doorbells
    rings: RingPlacement
    record: memoryview
    gpa_map: GpaMap
    guest_bell: int  # the kernel's descriptors
    own_bell: int


class ServedRing:
    """One open channel."""

    def __init__(
        self,
        process: Process,
        turns: Turns,
        parts: RingParts,
        seam: DeadlySeam,
        medium: SimulatedMedium,
        server: type[StorageVsp],
        costs: Costs,
        rng: Random,
        *,
        wake_guest: Callable[[], None],
        on_broken: Callable[[str], None],
        on_hang: Callable[[], None],
        held_up: Callable[[], float | None] = lambda: 0.0,
    ) -> None:
        """`held_up`: asked at each request, for how many ns more it takes; None: until `let_go`."""
        self._process, self._turns, self._parts, self._seam = process, turns, parts, seam
        self._costs, self._rng = costs, rng
        self._medium = medium
        self._wake_guest, self._on_broken, self._on_hang = wake_guest, on_broken, on_hang
        self._held_up, self._is_held = held_up, False
        self.was_executing: Final = parts.record[_EXECUTING_AT] != 0
        bells, rings = parts.doorbells, parts.rings
        offset = rings.downstream_page_offset * PAGE_BYTES
        self.native: Final = Channel(
            rings.memory,
            outgoing_offset=offset,
            outgoing_bytes=len(rings.memory) - offset - PAGE_BYTES,
            incoming_offset=0,
            incoming_bytes=offset - PAGE_BYTES,
            signal_fd=bells.signal_fd,
            wait_fd=bells.wait_fd,
            waiting=Waiting("block"),
            journal=parts.record,
        )
        self._channel = SteppedChannel(self.native, seam, rings, parts.guest_bell)
        self._vsp = server(
            cast(Channel, self._channel),
            parts.gpa_map,
            medium,
            serial=process.name,
            lock=cast(DeviceLock, _NoLock()),
            record=parts.record,
            seam=seam,
            fast=False,
        )
        self.own_bell: Final = parts.own_bell
        self.is_closed = self._is_released = False
        self._is_serving = False  # a turn is on its way
        self._hangs_since_ns: int | None = None
        self._hangs_for_ever = False
        self._is_live = False
        process.interruptions.append(self._interrupted)

    # -- taking over

    def replay(self) -> bool:
        """What a predecessor may have begun. False: the medium hangs; the rest is the ring's own to do."""
        try:
            self._vsp.replay()
        except Suspended as suspended:
            self._suspend(suspended)
            return False
        except RingError as error:
            self._broken(error)
        self._channel.kick()
        self._tell_guest()
        return True

    def serve(self) -> None:
        """From here on it looks for work by itself."""
        self._is_live = True
        self.look()

    # -- its turns

    def was_rung(self) -> bool:
        return rung(self.own_bell)

    def wake(self) -> None:
        """Its doorbell has rung."""
        self._process.after(self._costs.wake, self.look)

    def look(self) -> None:
        """Woken, or done with a request."""
        if self.is_closed or self._is_serving or not self._is_live or self._hangs_since_ns is not None:
            return
        if self.native.has_work or not self.native.arm():
            self.native.disarm()
            if (more_ns := self._held_up()) is None:
                self._is_held, self._hangs_since_ns = True, self._process.clock.now_ns
                self._on_hang()
                return
            self._is_serving = True
            self._process.after(self._costs.serving(self._rng) + more_ns, self._serve)

    def _serve(self) -> None:
        self._is_serving = False
        if self.is_closed:
            return
        if self._turns.holder not in (None, self):
            self._turns.waiting.append(self)
            return
        self._turns.holder = self
        received = self.native.packets_received
        try:
            self._vsp.serve(OneTurn())  # type: ignore[arg-type]  # of an event it asks nothing else
        except Suspended as suspended:
            self._suspend(suspended)
            return
        except RingClosed:
            return
        except RingError as error:
            self._broken(error)
            return
        self._turns.give_back()
        self._tell_guest()
        if self.native.held or (self.native.packets_received == received and self.native.has_work):
            self._channel.serve_again()  # its guest leaves no room for the answer
            self._process.after(_SOON_NS, self.look)
        else:
            self.look()

    def _suspend(self, suspended: Suspended) -> None:
        self._turns.holder = self
        self._hangs_since_ns = self._process.clock.now_ns
        self._channel.serve_again()
        self._hangs_for_ever = suspended.delay_ns is None
        if suspended.delay_ns is not None:
            self._process.after(suspended.delay_ns, self.go_on)
        self._on_hang()

    def go_on(self) -> None:
        """The medium came back."""
        if self._hangs_since_ns is not None and not self.is_closed:
            self._hangs_since_ns = None
            self._is_serving, self._is_live = True, True
            self._serve()

    def let_go(self) -> None:
        """What held its requests up is healed."""
        if self._is_held and not self.is_closed:
            self._is_held, self._hangs_since_ns = False, None
            self._process.after(0, self.look)

    def hangs_in(self, medium: SimulatedMedium) -> bool:
        """Until the medium comes back, that is; not for a time."""
        return self._medium is medium and self._hangs_since_ns is not None and self._hangs_for_ever

    def resume(self) -> None:
        self._process.after(0, self.go_on)

    def hangs_for_ns(self) -> int:
        since_ns = self._hangs_since_ns
        return 0 if since_ns is None else self._process.clock.now_ns - since_ns

    def _tell_guest(self) -> None:
        if self._channel.take_signal():
            self._wake_guest()

    def _broken(self, error: RingError) -> None:
        self._turns.give_back()
        self.close()
        self._on_broken(f"{type(error).__name__}: {error}")

    def _interrupted(self, rng: Random) -> None:
        """Its process is killed: the thread that serves a request is somewhere in the midst of it. Raises Died."""
        place = rng.choice(_PLACES)
        if self._is_serving and not self.is_closed and place is not None and self._turns.holder is None:
            self._seam.arm(place)
            try:
                self._serve()
            finally:
                self._seam.disarm()

    # -- the end

    def close(self) -> None:
        """Nothing of it happens any more."""
        if not self.is_closed:
            self.is_closed = True
            self._channel.close()
            self._process.interruptions.remove(self._interrupted)
            if self._turns.holder is self:
                self._turns.give_back()

    def release(self) -> None:
        """After `close`: its descriptors. Once is enough."""
        if not self._is_released:
            self._is_released = True
            self._parts.doorbells.close()
