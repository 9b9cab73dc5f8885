"""One open channel on the serving side: its rings, and the worker, a thread, that serves it.

A worker that fails, by a defect of ours or of a backend, is started again on the same rings, after a pause that
grows (partitions.stack.back_off): what it had not released is executed again first. So one bad request stalls its
own channel for some milliseconds, and ends in `failed` when it never gets better.
"""

import contextlib
import struct
import threading
import time
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final, Protocol, runtime_checkable

from bus.memory import PAGE_BYTES, MemorySlot
from bus.native import Channel, RingClosed, RingError, ServiceBudget, Waiting, eventfd_signal
from bus.seam import Seam
from bus.synic import VMBUS_SINT, page_flag
from bus.tracing import NOT_TRACED, Tracing
from partitions.stack.back_off import WORKER_RESTARTS, BackOff
from partitions.stack.channel_ports import Doorbells
from partitions.stack.device_gone import DeviceGone
from runtime.abi import Route

_EXECUTING_AT: Final = 8  # in a channel record: non-zero while a batch is executed and not yet published
_GIVEN_UP_AT: Final = 24  # the same: non-zero once others were let at the device; nobody may replay any more
_INTERRUPT_MASK_AT: Final = 8  # in a ring's header page, bus/native/ring.h
_PENDING_SEND_AT: Final = 12
_U32: Final = struct.Struct("<I")
JOIN_MS_MAX: Final = 5_000  # a backend call that takes longer keeps its thread; the thread ends with the call


class Service(Protocol):
    """A VSP on one opened channel."""

    def replay(self) -> None:
        """Execute what the ring holds now; a predecessor may have begun with it."""

    def serve(self, stop: threading.Event) -> None:
        """Until `stop` is set or the channel is closed; RingCorrupt: the guest broke the ring."""

    @property
    def waits_for_guest(self) -> bool:
        """Whether it can't go on before the guest has taken answers in."""

    def statistics(self) -> dict[str, int]: ...


@runtime_checkable
class DeviceHolder(Service, Protocol):
    """A service that, when it fails in the middle of a request, keeps everyone else from the device.

    Otherwise somebody could see, or overwrite, what the successor will do a second time: docs/recovery.md.
    """

    def inherit(self, failed: object) -> None:
        """Go on holding the device that this one, of the same class, held, until what it was at has been replayed."""

    def let_go(self) -> None:
        """There will be no successor. A device that is not held is no error."""


@dataclass(frozen=True, slots=True)
class RingPlacement:
    """Where the two rings stand in mapped memory."""

    memory: memoryview  # the pages of the ring GPADL, from its first one on
    downstream_page_offset: int

    def __post_init__(self) -> None:
        pages = len(self.memory) // PAGE_BYTES
        if not 2 <= self.downstream_page_offset <= pages - 2:
            raise ValueError(f"rings of {self.downstream_page_offset} and {pages} pages in all")


def place_rings(
    slots: Iterable[MemorySlot], gpfn: int, pages: int, downstream_page_offset: int
) -> RingPlacement:
    """Rings in these pages of a guest. ValueError, LookupError: they can't be there."""
    for slot in slots:
        if slot.gpfn <= gpfn and gpfn + pages <= slot.end_gpfn:
            start = (gpfn - slot.gpfn) * PAGE_BYTES
            return RingPlacement(slot.memory[start : start + pages * PAGE_BYTES], downstream_page_offset)
    raise LookupError("the ring's pages are not in one slot")


@dataclass(frozen=True, slots=True)
class WorkerEnd:
    """Why a worker serves no more, though nobody told it to stop."""

    failed: bool  # for good, by no fault of the guest's; else the guest broke its ring
    reason: str


class ServedChannel:
    """Made when the guest opens, closed when it closes, is rescinded, or dies."""

    def __init__(
        self,
        doorbells: Doorbells,
        rings: RingPlacement,
        waiting: str,
        event_flags: memoryview,
        record: memoryview,
        seam: Seam,
        open_service: Callable[["ServedChannel"], Service],
        traced: Tracing = NOT_TRACED,
        *,
        journalled: bool = True,
        shared: bool = False,
        budget: ServiceBudget | None = None,
    ) -> None:
        """Owns the doorbells from here on.

        Args:
            event_flags: the SIEF page of the server's VP that the guest's signals go to.
            record: this channel's, in memory that outlives us: where a predecessor stood, or all zero.
            seam: where this process may be made to die.
            open_service: the VSP for `channel`, anew after each failure.
            journalled: what is published are answers to what was received, in order; so a successor knows where it is.
            shared: threads of other channels send here, too. The guest can make ringing its doorbell block, and is to
                stop nobody but itself: the service calls `ring`.
            budget: the guest's, with which the worker pays for its time.
        """
        self.record: Final = record
        self._end: WorkerEnd | None = None  # of one that serves no more, or never again
        if record[_GIVEN_UP_AT]:
            self._end = WorkerEnd(True, "the service failed before, and again")
        self.was_executing: Final = record[_EXECUTING_AT] != 0 and self._end is None
        self._doorbells, self._waiting = doorbells, waiting
        self.rings: Final = rings
        self._event_flags, self._seam, self._open_service = event_flags, seam, open_service
        self._traced, self._journalled, self._rung, self.budget = traced, journalled, 0, budget
        self._is_quiet = (
            shared and doorbells.route == Route.DIRECT
        )  # the broker's own doorbell nobody else holds
        self.channel = self._attach()
        self.back_off = BackOff(WORKER_RESTARTS)
        self.resting = False  # between a failure and the next try
        self._seen: tuple[int, float] = (0, time.monotonic())  # packets received, and since when
        self._stop = threading.Event()
        self._dismissed = threading.Event()
        self._thread: threading.Thread | None = None
        self._service: Service | None = None
        self._failed: Service | None = None  # the last one, until there is another
        self._is_stale = False  # `channel` is one of a service that failed
        self._is_changing = False  # it was closed for the next service
        self._changing = threading.Lock()  # of both, against those who close it
        self.undo: Callable[[], None] = lambda: None  # what a service on purpose did to the rings

    def _attach(self) -> Channel:
        rings, bells = self.rings, self._doorbells
        offset = rings.downstream_page_offset * PAGE_BYTES
        by_flag = bells.route == Route.BROKER
        return Channel(
            rings.memory,
            outgoing_offset=offset,
            outgoing_bytes=len(rings.memory) - offset - PAGE_BYTES,
            incoming_offset=0,
            incoming_bytes=offset - PAGE_BYTES,
            signal_fd=-1 if self._is_quiet else bells.signal_fd,
            wait_fd=bells.wait_fd,
            waiting=Waiting(self._waiting),
            flags=self._event_flags if by_flag else None,
            flag=page_flag(VMBUS_SINT, bells.flag) if by_flag else -1,
            journal=self.record if self._journalled else None,
            seam=self._seam.memory,
            trace=self._traced.trace,
            trace_channel=self._traced.channel,
        )

    def ring(self) -> None:
        """Wake the guest, if it sleeps or waits for room. Never blocks. Not after `stop` has returned."""
        if not self._is_quiet or self._doorbells.signal_fd < 0:
            return
        rings, second = self.rings.memory, self.rings.downstream_page_offset * PAGE_BYTES
        (mask,) = _U32.unpack_from(rings, second + _INTERRUPT_MASK_AT)  # behind the fence of who published
        if mask == 0 or _U32.unpack_from(rings, _PENDING_SEND_AT) != (0,):
            self._rung += 1  # about: several threads count
            eventfd_signal(self._doorbells.signal_fd)

    def _kick(self) -> None:
        self.channel.kick()
        if self._is_quiet and self._doorbells.signal_fd >= 0:
            eventfd_signal(self._doorbells.signal_fd)

    def replay(self) -> bool:
        """Execute again what a predecessor had not released. Blocks until done, or given up.

        Where the predecessor was in the middle of a batch that is tried to the end here, as the worker would: nobody
        else may be let at the device before. False: it was not, and we failed. It is the worker's now, who may hold the
        device meanwhile: do not wait for it.
        """
        while self._end is None:
            try:
                self._prepare().replay()
            except RingError as error:
                self._broken(error)
            except Exception as error:
                if self._rest(error) and not self.was_executing:
                    return False
            else:
                break
        with contextlib.suppress(RingError):
            self._kick()  # the predecessor may have died between publishing and signalling
        return True

    def _prepare(self) -> Service:
        """The service, or the next one, which goes on holding the device if the last one did."""
        if self._is_stale:
            self._renew()
        if self._service is None:
            service = self._open_service(self)
            if isinstance(self._failed, DeviceHolder) and isinstance(service, DeviceHolder):
                service.inherit(self._failed)
            self._service, self._failed = service, None
        return self._service

    def start(self, name: str, on_end: Callable[[WorkerEnd], None]) -> None:
        """Serve in a thread of its own, which calls `on_end` when it gives up."""
        self._thread = threading.Thread(target=self._work, args=(on_end,), name=name, daemon=True)
        self._thread.start()

    def _work(self, on_end: Callable[[WorkerEnd], None]) -> None:
        if (end := self._serve()) is not None:
            on_end(end)
            return
        self._dismissed.wait()
        self._let_go()

    def _serve(self) -> WorkerEnd | None:
        """Until it is told to stop (None), or gives up; then the device is let go."""
        is_replayed = self._service is not None
        while self._end is None and not self._stop.is_set():
            try:
                service = self._prepare()
                if not is_replayed:
                    service.replay()
                    self._kick()
                is_replayed = False
                self.back_off.serves(time.monotonic_ns())
                self.resting = False
                if self.budget is not None:  # only now: of what is replayed, others wait for the end
                    self.channel.charge_to(self.budget)
                service.serve(self._stop)
            except RingError as error:
                if self._stop.is_set():
                    return None
                if not self._makes_way(error):
                    self._broken(error)
            except Exception as error:  # a defect of ours or of a backend; who ran into it waits, nobody else
                self._rest(error)
            else:
                if self._stop.is_set() or not self._makes_way(None):
                    return None
        return self._end

    def change_service(self) -> None:
        """Have the worker go on with another service, as after a failure. Any thread."""
        with self._changing:
            if not self._is_stale:
                self._is_changing = True
                self.channel.close()

    def _makes_way(self, error: RingError | None) -> bool:
        """Whether a service has ended for the next one."""
        if not self._is_changing or not (error is None or isinstance(error, RingClosed)):
            return False
        self._failed, self._service = self._service, None
        self._is_stale = True
        return True

    def _broken(self, error: RingError) -> None:
        """By the guest: nobody will execute again what was begun."""
        self._end = WorkerEnd(False, f"{type(error).__name__}: {error}")
        self._let_go()

    def _rest(self, error: Exception) -> bool:
        """The service failed: pause before the next one. False: there is none, and others may have the device."""
        if not (is_gone := isinstance(error, DeviceGone)):
            traceback.print_exc()
        self.resting = True
        if self._service is not None:
            self._failed, self._service = self._service, None
        due_ns = None if is_gone else self.back_off.failed(time.monotonic_ns())
        if due_ns is None:
            reason = str(error) if is_gone else f"the service failed: {type(error).__name__}: {error}"
            self._end = WorkerEnd(True, reason)
            self.record[_GIVEN_UP_AT] = 1  # before anybody sees what a successor of ours would do again
            self.record[_EXECUTING_AT] = 0
            self._let_go()
            return False
        self._is_stale = True
        self._stop.wait(max(due_ns - time.monotonic_ns(), 0) / 1e9)
        return True

    def _renew(self) -> None:
        """As a successor would: attach to the rings as they are."""
        with self._changing:
            self.channel.close()
            self.undo()
            self.channel = self._attach()
            self._is_stale = self._is_changing = False
        if self._stop.is_set():  # it may have closed the old one
            self.channel.close()

    def _let_go(self) -> None:
        for service in (self._service, self._failed):
            if isinstance(service, DeviceHolder):
                service.let_go()

    def is_stuck(self, stuck_ms: int) -> bool:
        """Whether the ring has held work for so long without a packet leaving it, through no fault of the guest's."""
        received = self.channel.packets_received
        seen, since = self._seen
        now = time.monotonic()
        guests_turn = self._service is not None and self._service.waits_for_guest
        is_resting = self.resting or self.channel.is_resting
        if received != seen or guests_turn or is_resting or not self.channel.has_work:
            self._seen = (received, now)
            return False
        return now - since > stuck_ms / 1000

    def halt(self) -> None:
        """Take no new request. One that is cut off before its answer keeps the device until `dismiss`."""
        self._stop.set()
        self.channel.close()

    def dismiss(self) -> None:
        """After `halt`: let the device go."""
        self._dismissed.set()
        if self._thread is None:
            self._let_go()

    def stop(self, patience_s: float = JOIN_MS_MAX / 1000) -> bool:
        """End the thread; True once nothing touches rings or pages any more. Blocks for `patience_s` at most.

        Where a successor replays what was cut off, all channels of the device go together: `stop_all`.
        """
        self.halt()
        self.dismiss()
        if self._thread is not None:
            self._thread.join(patience_s)
            return not self._thread.is_alive()
        return True

    def release(self) -> None:
        """Give the doorbells back, and the service with all that it has mapped. Only after `stop`.

        A service of a shared channel knows our `ring`: held by each other, they would stay until the collector came by.
        """
        self._doorbells.close()
        self._service = self._failed = None

    def statistics(self) -> dict[str, int]:
        counters = self.channel.statistics()
        counters["signals_sent"] += self._rung
        return counters | (self._service.statistics() if self._service is not None else {})


def stop_all(channels: Iterable[ServedChannel]) -> None:
    """Stop them between two requests, or in the middle of one that a successor will do again. Blocks up to JOIN_MS_MAX.

    No device is let go while anybody could still begin a request on it, and see, or overwrite, what was cut off.
    """
    stopping = list(channels)
    for channel in stopping:
        channel.halt()
    for channel in stopping:
        channel.dismiss()
    deadline = time.monotonic() + JOIN_MS_MAX / 1000
    for channel in stopping:
        channel.stop(max(deadline - time.monotonic(), 0))


def replay_in_order(channels: Iterable[tuple[bool, Callable[[], bool]]]) -> None:
    """A predecessor's channels, before any is started, each as (was_executing, replay): first those that were.

    The others had begun nothing. When one of them fails, it and those that follow are replayed by their workers: it may
    hold its device while it rests, and nobody waits for that here.
    """
    all_well = True
    for was_executing, replay in sorted(channels, key=lambda one: not one[0]):
        if all_well or was_executing:
            all_well = replay() and all_well


def clear_record(record: memoryview) -> None:
    """A new channel begins: whatever an older one of this flag left does not count."""
    record[:] = bytes(len(record))
