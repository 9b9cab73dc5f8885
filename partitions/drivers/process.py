"""A driver partition: one device, its backend and the servers of its channels, in a partition of its own.

Its stack (the parent partition's) keeps the VMBus and tells it by messages which channels to serve; rings and pages it
gets from the hypervisor, into its own GPA space, and only those of its own channels. One thread, this one, takes
messages and gives heartbeats; each channel has a thread of its own. It serves on while no root runs.
"""

import contextlib
import os
import queue
import select
import signal
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Final

from bus import tracing
from bus.channel_messages import STATUS_FAILURE, STATUS_SUCCESS
from bus.memory import MemorySlot
from bus.native import GpaMap, ServiceBudget
from bus.synic import VMBUS_SINT
from partitions.calls.serving import Caller
from partitions.child import Partition
from partitions.drivers.device_classes import class_of
from partitions.drivers.messages import (
    SHARE_STEP,
    Faults,
    Leave,
    MalformedDriverMessage,
    Ready,
    Serve,
    ServeFlags,
    Used,
    decode_driver_message,
)
from partitions.drivers.passage import PassageExit, listen_for_sockets
from partitions.drivers.served_devices import DrivenDevices, OneDevice
from partitions.drivers.state import STATE_PAGES, DriverState
from partitions.drivers.table import Action, Attach, DriverTable, GetStuck, Say, StopServing
from partitions.faults.server_agent import ServerAgent
from partitions.hardware.watch import deliver_to
from partitions.machine_plan import DevicePlan
from partitions.sdk.loading import DriverLoadError
from partitions.stack.channel_client import ChannelClient, MultiChannelService, manner_of, open_device
from partitions.stack.channel_ports import claim_doorbells
from partitions.stack.served_channel import ServedChannel, Service, WorkerEnd, place_rings, replay_in_order
from partitions.stack.served_endpoint import ServedEndpoint
from partitions.stack.vmbus_ports import DRIVER_ANSWER_CONNECTION, DRIVER_MESSAGE, server_event_port
from runtime.abi import HvStatus, HypercallError, Route

STATE_GPFN: Final = 0x1000  # in the driver's GPA space, below all windows
DEVICE_MEMORY_GPFN: Final = 0x1_0000
_TICKS_PER_PROMISE: Final = 4
_FIRST_PROMISE_MS: Final = 10_000  # made for a process when it starts, perhaps after it has made its own
_RETRY_MS: Final = 1  # while the stack's buffers are full


class _Attached:
    """One channel here: its server, and the slots that it was granted."""

    def __init__(self, serve: Serve, served: ServedChannel | ServedEndpoint, slots: list[MemorySlot]) -> None:
        self.serve, self.served, self._slots = serve, served, slots

    def release(self) -> None:
        """Only after it has stopped."""
        self.served.release()
        for slot in self._slots:
            slot.close()


def tick_s(hang_ms: int) -> float:
    """Between two heartbeats: several come within what was promised, by the driver itself or for it."""
    return min(hang_ms, _FIRST_PROMISE_MS) / 1000 / _TICKS_PER_PROMISE


class Driver:
    """One process of a driver partition, from its birth until it is killed or asked to end."""

    def __init__(self, partition: Partition) -> None:
        self._born_ns = time.monotonic_ns()
        self._partition, self._call = partition, partition.hypercalls
        self._vp = partition.vps[0]
        self._vp.enable((VMBUS_SINT,))
        self._call.end_of_message(self._vp.index)  # our predecessor may have emptied a slot and not said so
        (mapped,) = self._call.claim_gpa_pages(STATE_GPFN, STATE_PAGES)
        self._state = DriverState(MemorySlot.from_fd(mapped.fd, mapped.gpfn, mapped.pages).memory)
        struck = self._state.seam.take_struck()
        self._died_at = 0 if struck is None else int(struck)
        args = partition.args
        self._hang_ms, self._stuck_ms = int(args["hang_ms"]), int(args["stuck_ms"])
        self._table = DriverTable(int(args["generation"]))
        deliver_to(partition.console.emit, partition.name)  # in the hypervisor there are several of us
        self._passage: PassageExit | None = None
        self._device = self._open_device(args)
        self._faults = ServerAgent(self._state.faults, self._device.medium)
        self._channels: dict[int, _Attached] = {}
        self._budgets: dict[int, ServiceBudget] = {}  # by guest
        self._waiting: deque[bytes] = deque()  # to be posted
        self._news: queue.SimpleQueue[Callable[[], list[Action]]] = queue.SimpleQueue()  # of our threads
        self._wake_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._leaving = False
        self._listen_for_the_end()

    def _listen_for_the_end(self) -> None:
        signal.signal(signal.SIGTERM, self._leave)

    def _open_device(self, args: Any) -> DrivenDevices:
        plan, memory_fd = DevicePlan.from_table(args["device"]), None
        if plan.memory_pages:
            (mapped,) = self._call.claim_gpa_pages(DEVICE_MEMORY_GPFN, plan.memory_pages)
            memory_fd = mapped.fd
        backing_fd = self._partition.files.get("backing")
        device = class_of(plan.kind).open(plan, memory_fd, backing_fd)
        self._passage = listen_for_sockets(self._call, device)
        return OneDevice(device)

    def _leave(self, *_: object) -> None:
        """SIGTERM: the machine is going down, or our parent wants us to end. Not before our guests have let go."""
        self._leaving = True
        os.eventfd_write(self._wake_fd, 1)

    def run(self) -> int:
        poller = select.poll()
        for fd in (self._vp.line_fd, self._wake_fd):
            poller.register(fd, select.POLLIN)
        pause_s = tick_s(self._hang_ms)
        due = time.monotonic()
        while not (self._leaving and self._table.idle and not self._waiting):
            patience_ms = max((due - time.monotonic()) * 1000, 0)
            ready = poller.poll(min(patience_ms, _RETRY_MS) if self._waiting else patience_ms)
            if any(fd == self._vp.line_fd for fd, _ in ready):
                self._vp.acknowledge()
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(self._wake_fd)
            self._receive()
            self._hear_threads()
            self._post()
            if (late_s := time.monotonic() - due) >= 0:
                due = time.monotonic() + pause_s
                self._tick(was_stopped=late_s > pause_s)
        if self._passage is not None:
            self._passage.close()
        self._device.close()
        return 0

    def _tick(self, was_stopped: bool = False) -> None:
        """`was_stopped`: this process stood still, as when it is paused; its threads need time to go on, too."""
        if self._table.complete:  # before that, the promise that was made for us counts
            self._promise()
        for attached in self._channels.values():
            self._state.store_counters(attached.serve.flag, attached.served.statistics())
            if not was_stopped and attached.served.is_stuck(self._stuck_ms):
                self._partition.report("driver_stuck", relid=attached.serve.relid, stuck_ms=self._stuck_ms)
                self._give_up()

    def _promise(self) -> None:
        self._call.heartbeat(self._hang_ms)

    def _give_up(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)  # our successor may be luckier

    # -- messages

    def _receive(self) -> None:
        for message_type, _, payload in self._vp.take_messages(VMBUS_SINT):
            if message_type == DRIVER_MESSAGE:
                with contextlib.suppress(MalformedDriverMessage):
                    message = decode_driver_message(payload)
                    if isinstance(message, Faults) and self._table.complete:
                        self._faults.look()
                    if isinstance(message, Leave) and self._table.complete:
                        self._leave()
                    if isinstance(message, Used) and (budget := self._budgets.get(message.guest)) is not None:
                        budget.charge(message.time_ns)
                    self._perform(self._table.receive(message))

    def _hear_threads(self) -> None:
        with contextlib.suppress(queue.Empty):
            while True:
                self._perform(self._news.get_nowait()())

    def _tell(self, news: Callable[[], list[Action]]) -> None:
        """From a thread."""
        self._news.put(news)
        os.eventfd_write(self._wake_fd, 1)

    def _post(self) -> None:
        while self._waiting:
            try:
                self._call.post_message(DRIVER_ANSWER_CONNECTION, DRIVER_MESSAGE, self._waiting[0])
            except HypercallError as error:
                if error.status in (HvStatus.INSUFFICIENT_BUFFERS, HvStatus.INVALID_SYNIC_STATE):
                    return  # no root runs, or it is slow
                raise
            self._waiting.popleft()

    # -- actions

    def _perform(self, actions: list[Action]) -> None:
        for action in actions:
            match action:
                case Say(message):
                    self._waiting.append(message.encode())
                case Attach(serves, first):
                    self._attach_all(serves, first=first)
                case StopServing(number):
                    self._stop(number)
                case GetStuck():
                    self._device.stick()

    def _attach_all(self, serves: tuple[Serve, ...], *, first: bool) -> None:
        """Who was in the middle of a batch is replayed first, on the device alone: docs/recovery.md says why."""
        fresh: list[_Attached] = []
        for serve in serves:
            try:
                fresh.append(self._attach(serve))
            except (HypercallError, LookupError, ValueError, OSError) as error:
                self._partition.report("driver_refused", relid=serve.relid, error=str(error)[:200])
                self._perform(self._table.attached(serve.number, STATUS_FAILURE))
        restored_ns = time.monotonic_ns()
        replay_in_order((attached.served.was_executing, attached.served.replay) for attached in fresh)
        self._device.settled(first)
        replayed_ns = time.monotonic_ns()
        for attached in fresh:
            self._start(attached)
            self._perform(self._table.attached(attached.serve.number, STATUS_SUCCESS))
        self._faults.look()  # behind all that is replayed
        if first:
            self._promise()  # ours is shorter than the one that was made for us: a hang is found from now on
            self._waiting.append(
                Ready(
                    self._table.generation,
                    len(fresh),
                    self._died_at,
                    self._born_ns,
                    restored_ns,
                    replayed_ns,
                    time.monotonic_ns(),
                ).encode()
            )

    def _attach(self, serve: Serve) -> _Attached:
        if serve.flags & ServeFlags.MESSAGES:
            return self._attach_endpoint(serve)
        route = Route.BROKER if serve.flags & ServeFlags.BROKER_ROUTE else Route.DIRECT
        record = self._state.record(serve.flag, serve.number)
        slots = self._claim_slots(serve)
        gpa_map = GpaMap()
        for slot in slots:
            gpa_map.add(slot.gpfn, slot.memory)

        device = self._device.select(serve.device, serve.kind)
        client = ChannelClient(serve.guest, serve.buffer)

        def ask(count: int) -> None:
            self._tell(lambda: self._table.asked(serve.number, count))

        def open_service(served: ServedChannel) -> Service:
            service = open_device(
                device, client, served, gpa_map, self._state.seam, self._faults, serve.sub_channel
            )
            if isinstance(service, MultiChannelService):
                service.sub_channel_requests.tell(ask)
            return service

        with contextlib.ExitStack() as undo:
            for slot in slots:
                undo.callback(slot.close)
            rings = place_rings(slots, serve.ring_gpfn, serve.ring_pages, serve.downstream_page_offset)
            silent = bool(serve.flags & ServeFlags.SILENT)
            doorbells = claim_doorbells(self._call, serve.flag, route, silent=silent)
            undo.callback(doorbells.close)
            served = ServedChannel(
                doorbells,
                rings,
                serve.waiting,
                self._vp.event_flags,
                record,
                self._state.seam,
                open_service,
                tracing.of_server(
                    serve.guest,
                    serve.relid,
                    self._partition.id,
                    server_event_port(serve.flag),
                    self._partition.name,
                ),
                budget=self._budget(serve),
                **manner_of(device),
            )
            undo.pop_all()
        attached = self._channels[serve.number] = _Attached(serve, served, slots)
        return attached

    def _budget(self, serve: Serve) -> ServiceBudget:
        """One for all channels of a guest. It is told its share with each."""
        budget = self._budgets.setdefault(serve.guest, ServiceBudget())
        budget.limit(serve.share * SHARE_STEP)
        return budget

    def _attach_endpoint(self, serve: Serve) -> _Attached:
        record = self._state.record(serve.flag, serve.number)
        caller = Caller(serve.guest, bool(serve.flags & ServeFlags.RECEIVES))
        service = self._device.open_messages(caller, record, self._state.seam)
        proxy = bool(serve.flags & ServeFlags.PROXY)
        budget = self._budget(serve)
        served = ServedEndpoint(self._call, serve.flag, service, proxy=proxy, budget=budget)
        attached = self._channels[serve.number] = _Attached(serve, served, [])
        return attached

    def _claim_slots(self, serve: Serve) -> list[MemorySlot]:
        """Each slot once, by the guest's own page numbers."""
        slots: dict[int, MemorySlot] = {}
        try:
            for grant in serve.grants:
                shift = grant.gpfn - grant.guest_gpfn
                for mapped in self._call.claim_gpa_pages(grant.gpfn, grant.pages):
                    gpfn = mapped.gpfn - shift
                    if gpfn in slots:
                        os.close(mapped.fd)
                    else:
                        slots[gpfn] = MemorySlot.from_fd(mapped.fd, gpfn, mapped.pages)
        except BaseException:
            for slot in slots.values():
                slot.close()
            raise
        return list(slots.values())

    def _start(self, attached: _Attached) -> None:
        serve = attached.serve

        def on_end(end: WorkerEnd) -> None:
            self._tell(lambda: self._table.lost(serve.number, end.failed, end.reason))

        attached.served.start(f"{serve.guest}.{serve.relid}", on_end)

    def _stop(self, number: int) -> None:
        attached = self._channels.pop(number)

        def stop() -> None:
            while not attached.served.stop():  # its backend does not come back
                self._partition.report("driver_channel_stuck", relid=attached.serve.relid)
            attached.release()
            self._tell(lambda: self._table.stopped(number))

        threading.Thread(target=stop, name=f"stop.{number}", daemon=True).start()


EXIT_CANNOT_LOAD: Final = (
    78  # EX_CONFIG of sysexits.h: the driver cannot be had, and trying again would not help
)


def main(partition: Partition) -> int:
    try:
        driver = Driver(partition)
    except DriverLoadError as error:
        partition.report("driver_not_loaded", error=str(error))
        return EXIT_CANNOT_LOAD
    return driver.run()
