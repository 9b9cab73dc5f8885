"""The platform's desk for faults: numbers each order, hands it to whoever carries it out, and keeps account.

Orders that the root or the hypervisor carries out travel as requests of the platform's to them. What the root had armed
dies with it; its successor gets the orders again, with as many strikes as are left. A compound becomes its parts, each
an order of its own.
"""

import contextlib
import os
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import trio

from runtime.chaos.faults.catalogue import FAULTS
from runtime.chaos.faults.compounds import BY_NAME as COMPOUNDS
from runtime.chaos.faults.kinds import Carrier, ParameterError
from runtime.chaos.faults.knobs import FOR_EVER
from runtime.chaos.faults.orders import ARMED_MAX, Counts, FaultRefused, Order, OrderError
from runtime.chaos.faults.process_agent import ProcessAgent
from runtime.chaos.faults.step_kinds import KILL_AT_STEP
from runtime.machine.events import Event
from runtime.machine.platform import Platform
from runtime.machine.questions import RequestRefused
from runtime.reserved_names import HYPERVISOR, ROOT

PLATFORM: Final = "platform"
STANDBY: Final = "standby"
_ANSWER_S_MAX: Final = 2.0
_STARTS_QUEUED_MAX: Final = 64
_NONE_YET: Final = Counts(0, 0)
_LISTEN_S: Final = 0.05  # how late a strike elsewhere is told

_Ask = Callable[..., Awaitable[Mapping[str, Any]]]


class FaultDesk:
    """Of one machine. Lives in its platform."""

    def __init__(
        self, platform: Platform, nursery: trio.Nursery, management_path: Path | None = None
    ) -> None:
        self._platform, self._nursery, self._management_path = platform, nursery, management_path
        self._last = 0
        self._armed: dict[int, Order] = {}
        self._counts: dict[int, Counts] = {}  # as last heard, of those that are carried out elsewhere
        self._listens = False
        self._ended: dict[str, int] = {}  # when a process of that name did last
        self._owed: set[int] = set()  # healed, and no root has heard of it yet
        self._seen: set[int] = set()  # whose first strike was told
        self._processes = ProcessAgent(self, nursery, self._struck)
        self._end_listening = platform.log.listen(self._hear)
        self._pids: dict[str, int] = {}
        self._before: dict[int, Counts] = {}  # of roots that are no more, where a successor counts from 0
        self._parts: dict[int, list[int]] = {}  # by compound: the numbers of those that were injected
        self._cancels: dict[int, trio.CancelScope] = {}  # by compound: of those that are to come

    # -- what management asks

    async def inject(self, table: object) -> int:
        """The number that it got. Raises FaultRefused."""
        try:
            order = Order.from_table(table)
            kind = FAULTS.get(order.kind)
            if kind is None:
                raise FaultRefused(f"no fault is named {order.kind!r}; see: partvisor faults")
            parameters = kind.settle(order.parameters)
        except (OrderError, ParameterError) as error:
            raise FaultRefused(str(error)) from None
        return await self._inject(replace(order, parameters=parameters))

    async def _inject(self, order: Order, part_of: int | None = None) -> int:
        if len(self._armed) >= ARMED_MAX:
            raise FaultRefused(f"{ARMED_MAX} faults are armed; heal some: partvisor heal")
        self._last += 1
        order = replace(order, number=self._last)
        self._armed[order.number] = order
        if not self._listens:
            self._listens = True
            self._nursery.start_soon(self._listen_for_strikes)
        more = {} if part_of is None else {"part_of": part_of}
        self._platform.log.append(
            "fault.injected", None, number=order.number, fault=order.kind, target=order.target, **more
        )
        if part_of is not None:
            self._parts[part_of].append(order.number)
        try:
            await self._send(order)
        except FaultRefused:
            await self._withdraw(order)  # it may have been armed, and the answer not have come
            self._armed.pop(order.number, None)
            self._platform.log.append("fault.refused", None, number=order.number)
            raise
        return order.number

    async def _inject_parts(self, compound: Order) -> None:
        """Those that are due at once; the others come by themselves."""
        parts = self._parts[compound.number] = []
        later = []
        try:
            for after_ms, order in COMPOUNDS[compound.kind].orders(compound):
                settled = replace(order, parameters=FAULTS[order.kind].settle(order.parameters))
                if after_ms == 0:
                    await self._inject(settled, compound.number)
                else:
                    later.append((after_ms, settled))
        except FaultRefused:
            for number in parts:
                await self._heal(number)
            raise
        scope = self._cancels[compound.number] = trio.CancelScope()
        self._nursery.start_soon(self._inject_later, compound.number, later, scope)

    async def _inject_later(
        self, compound: int, later: list[tuple[int, Order]], scope: trio.CancelScope
    ) -> None:
        """A part that is refused never strikes, and so does the compound.

        What the parts before it have struck is asked for first: it may end whoever counts that.
        """
        began = trio.current_time()
        with scope:
            for after_ms, order in later:
                await trio.sleep_until(began + after_ms / 1000)
                await self._refresh()
                with contextlib.suppress(FaultRefused):
                    await self._inject(order, compound)

    async def heal(self, number: int | None) -> None:
        """Of one, or of all. FaultRefused: there is no such number."""
        if number is not None and number not in self._armed:
            raise FaultRefused(f"no fault {number} is armed; see: partvisor injected")
        await self._refresh()
        for healed in list(self._armed) if number is None else [number]:
            await self._heal(healed)

    async def _heal(self, number: int) -> None:
        if (order := self._armed.get(number)) is None:
            return
        if order.kind in COMPOUNDS:
            if (scope := self._cancels.pop(number, None)) is not None:
                scope.cancel()
            for part in self._parts[number]:
                await self._heal(part)
        counts = self._count_of(number)
        await self._withdraw(order)
        self._armed.pop(number, None)
        self._platform.log.append(
            "fault.healed", None, number=number, passes=counts.passes, fired=counts.fired
        )

    async def injected(self) -> list[Mapping[str, Any]]:
        await self._refresh()
        rows: list[Mapping[str, Any]] = []
        for number, order in self._armed.items():
            counts = self._count_of(number)
            rows.append({"order": order.to_table(), "passes": counts.passes, "fired": counts.fired})
        return rows

    def close(self) -> None:
        self._end_listening()

    # -- carrying out

    async def _send(self, order: Order) -> None:
        match FAULTS[order.kind].carrier:
            case Carrier.PROCESS:
                await self._processes.inject(order)
            case Carrier.HYPERVISOR:
                await self._ask(self._platform.ask_hypervisor, "inject", order=order.to_table())
            case Carrier.COMPOUND:
                await self._inject_parts(order)
            case _:
                await self._ask(self._platform.ask_root, "inject", order=order.to_table())

    async def _withdraw(self, order: Order) -> None:
        """A hypervisor that is gone has nothing armed. What a root had armed may outlive it: its successor is told."""
        match FAULTS[order.kind].carrier:
            case Carrier.PROCESS:
                await self._processes.heal(order.number)
            case Carrier.COMPOUND:
                pass
            case Carrier.HYPERVISOR:
                with contextlib.suppress(FaultRefused):
                    await self._ask(self._platform.ask_hypervisor, "heal", number=order.number)
            case _:
                await self._withdraw_from_root(order.number)

    async def _withdraw_from_root(self, number: int) -> None:
        """Until one has said that it has heard: another may come while we wait for an answer."""
        self._owed.add(number)
        with contextlib.suppress(FaultRefused):
            await self._ask(self._platform.ask_root, "heal", number=number)
            self._owed.discard(number)

    async def _listen_for_strikes(self) -> None:
        """As long as something is armed elsewhere that has not struck yet."""
        try:
            while any(number not in self._seen and self._is_elsewhere(number) for number in self._armed):
                await trio.sleep(_LISTEN_S)
                await self._refresh()
        finally:
            self._listens = False

    def _is_elsewhere(self, number: int) -> bool:
        return FAULTS[self._armed[number].kind].carrier not in (Carrier.PROCESS, Carrier.COMPOUND)

    async def _refresh(self) -> None:
        """What the root and the hypervisor have counted."""
        carriers = {FAULTS[order.kind].carrier for order in self._armed.values()}
        asked: list[_Ask] = []
        if Carrier.HYPERVISOR in carriers:
            asked.append(self._platform.ask_hypervisor)
        if carriers - {Carrier.HYPERVISOR, Carrier.PROCESS, Carrier.COMPOUND}:
            asked.append(self._platform.ask_root)
        for ask in asked:
            with contextlib.suppress(FaultRefused):
                reply = await self._ask(ask, "fault-counts")
                for number, *counts in reply.get("counts", ()):
                    if number in self._armed:
                        self._heard(self._armed[number], Counts(*map(int, counts)))

    async def _ask(self, ask: _Ask, verb: str, **values: object) -> Mapping[str, Any]:
        try:
            with trio.fail_after(_ANSWER_S_MAX):
                reply: Mapping[str, Any] = await ask(verb, **values)
        except (RequestRefused, OSError, trio.TooSlowError) as error:
            raise FaultRefused(str(error) or "no answer") from None
        return reply

    def _count_of(self, number: int) -> Counts:
        if (parts := self._parts.get(number)) is not None:
            return Counts(len(parts), int(number in self._seen))
        return self._processes.counts().get(number) or self._counts.get(number, _NONE_YET)

    def _heard(self, order: Order, counts: Counts) -> None:
        before = self._before.get(order.number, _NONE_YET)
        counts = replace(counts, passes=before.passes + counts.passes, fired=before.fired + counts.fired)
        self._counts[order.number] = counts
        if counts.fired:
            self._struck(order, counts.first_ns)

    def _struck(self, order: Order, at_ns: int = 0) -> None:
        """The first strike is an event, with its instant where that is known."""
        if order.number not in self._seen:
            self._seen.add(order.number)
            if order.kind == KILL_AT_STEP:  # it struck who was to tell of it; as far as we know, just then
                at_ns = self._ended.get(order.target, 0)
            more = {"at_ns": at_ns} if 0 < at_ns <= time.monotonic_ns() else {}
            self._platform.log.append("fault.fired", None, number=order.number, **more)
        for compound, parts in self._parts.items():
            expected = len(COMPOUNDS[self._armed[compound].kind].parts) if compound in self._armed else 0
            if compound not in self._seen and len(parts) == expected and self._seen.issuperset(parts):
                self._struck(self._armed[compound])

    # -- what happens meanwhile

    def _hear(self, event: Event, encoded: bytes) -> None:
        match event.kind:
            case "root.standby":
                self._pids[STANDBY] = int(event.fields["pid"])
            case "root.exited":
                self._ended[ROOT] = event.monotonic_ns
            case "root.restored":
                self._nursery.start_soon(self._send_again)
            case "partition.started" if event.partition is not None:
                self._pids[event.partition] = int(event.fields["pid"])
            case "partition.exited" if event.partition is not None:
                self._pids.pop(event.partition, None)
                self._ended[event.partition] = event.monotonic_ns

    async def _send_again(self) -> None:
        """To a new root: what the old one had armed, as far as it has not struck as often as it was to."""
        for number in list(self._owed):
            await self._withdraw_from_root(number)
        for order in list(self._armed.values()):
            if FAULTS[order.kind].carrier in (Carrier.PROCESS, Carrier.HYPERVISOR, Carrier.COMPOUND):
                continue
            knobs, fired = order.knobs, self._count_of(order.number).fired
            if FAULTS[order.kind].carrier is Carrier.STACK:
                self._before[order.number] = self._count_of(order.number)
            if knobs.times != FOR_EVER:
                knobs = replace(knobs, times=max(knobs.times - fired, 0))
            with contextlib.suppress(FaultRefused):
                await self._send(replace(order, knobs=knobs))

    # -- the machine's processes: process_agent.Victims

    def pid_of(self, name: str) -> int:
        status = self._platform.status()
        own = {
            ROOT: status["root_pid"],
            HYPERVISOR: status["hypervisor_pid"],
            PLATFORM: status["platform_pid"],
        }
        pid = self._pids.get(name) or own.get(name)
        if not pid:
            raise LookupError(f"{name}: no process of that name runs; see: partvisor list")
        return int(pid)

    def management_path(self) -> str:
        if self._management_path is None:
            raise LookupError("this machine has no management socket")
        return str(self._management_path)

    async def signal(self, name: str, number: int) -> None:
        os.kill(self.pid_of(name), number)

    @contextlib.contextmanager
    def starts_of(self, name: str) -> Iterator[trio.MemoryReceiveChannel[int]]:
        kind = "root.started" if name == ROOT else "partition.started"
        send, receive = trio.open_memory_channel[int](_STARTS_QUEUED_MAX)

        def hear(event: Event, encoded: bytes) -> None:
            if event.kind == kind and event.partition == name:
                with contextlib.suppress(trio.WouldBlock):
                    send.send_nowait(int(event.fields["pid"]))

        end = self._platform.log.listen(hear)
        try:
            yield receive
        finally:
            end()
