"""What the root does for the machine's operator: consoles of guests, and what is asked of their services.

All of it is news and questions on the firmware link: the platform holds the other ends, and outlives us.
"""

import contextlib
import os
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any, Final

import trio

from partitions.emulated.consoles import EmulatedConsoles
from partitions.emulated.host import EmulationHost
from partitions.integration.control import IntegrationControl, IntegrationRefused
from partitions.placement import Devices
from partitions.serial.console_line import deliver_to
from partitions.stack.virtualization_stack import VirtualizationStack
from runtime.machine.firmware import PacketLink

_REASON_CHARACTERS_MAX: Final = 400


class OperatorServices:
    """Made before the devices are opened: a serial line may be a console's."""

    def __init__(self, firmware: PacketLink, nursery: trio.Nursery, emulation: EmulationHost) -> None:
        self._firmware, self._nursery, self._emulation = firmware, nursery, emulation
        self._control: IntegrationControl | None = None
        deliver_to(lambda line, fd: nursery.start_soon(self._hand_over, line, fd))

    def begin(
        self, tables: Iterable[Mapping[str, Any]], devices: Devices, stack: VirtualizationStack
    ) -> None:
        """Of guests that are there, or are about to be."""
        ports = EmulatedConsoles(self._emulation, self._nursery)
        for table in tables:
            if any(each["kind"] == "uart" for each in table.get("emulated", ())):
                ports.open(table["name"])

        def ids() -> dict[str, int]:
            return {bus.name: key for key, bus in stack.guests.items() if key not in stack.ended}

        self._control = IntegrationControl(
            devices, lambda name: ids()[name], lambda: list(ids()), self._nursery
        )

    def heartbeat_of(self, name: str) -> str | None:
        return self._control.heartbeat_of(name) if self._control is not None else None

    def answer(self, values: Mapping[str, Any]) -> None:
        """A question of the platform's; the answer goes out when there is one."""
        self._nursery.start_soon(partial(self._answer, values))

    async def _answer(self, values: Mapping[str, Any]) -> None:
        answer: dict[str, object] = {"request": values.get("request")}
        try:
            assert self._control is not None
            answer |= await self._control.perform(values["service"], values["name"], values["order"])
        except IntegrationRefused as refused:
            verb, answer["reason"] = "error", str(refused)[:_REASON_CHARACTERS_MAX]
        except (KeyError, TypeError, ValueError) as error:
            verb, answer["reason"] = "error", f"an order that is none: {error!r}"[:_REASON_CHARACTERS_MAX]
        else:
            verb = "answered"
        await self._firmware.send(verb, answer)

    async def _hand_over(self, line: str, fd: int) -> None:
        try:
            with contextlib.suppress(OSError):
                await self._firmware.send("console", {"line": line}, [fd])
        finally:
            os.close(fd)
