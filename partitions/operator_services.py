"""What the root does for the machine's operator: consoles of guests, and what is asked of their services.

All of it is news and questions on the firmware link: the platform holds the other ends, and outlives us. What not every
machine has is imported when it is first asked for.
"""

import contextlib
import os
import socket
from collections.abc import Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import trio

from partitions import platform_ends
from partitions.placement import Devices
from partitions.stack.guest_bus import GuestBus
from partitions.stack.virtualization_stack import VirtualizationStack
from runtime.abi import Route
from runtime.machine.firmware import PacketLink

if TYPE_CHECKING:
    from partitions.display.screens import Screens
    from partitions.emulated.host import EmulationHost
    from partitions.integration.control import IntegrationControl
    from partitions.net.capture_desk import CaptureDesk
    from partitions.streams.desk import StreamDesk
    from partitions.streams.dialler import Dialler

_REASON_CHARACTERS_MAX: Final = 400


class OperatorServices:
    """Made before the devices are opened: a serial line may be a console's."""

    def __init__(
        self, firmware: PacketLink, nursery: trio.Nursery, emulation: "EmulationHost | None"
    ) -> None:
        self._firmware, self._nursery, self._emulation = firmware, nursery, emulation
        self._control: IntegrationControl | None = None
        self._tables: list[Mapping[str, Any]] = []  # [[partition]]
        self._devices: Devices = {}
        self._stack: VirtualizationStack | None = None
        self._captures: CaptureDesk | None = None
        self._streams: StreamDesk | None = None  # None: no guest's config allows any
        self._dialler: Dialler | None = None
        self._screens: Screens | None = None
        platform_ends.deliver_to(
            lambda verb, values, fd: nursery.start_soon(self._hand_over, verb, values, fd)
        )

    def begin(
        self, tables: Iterable[Mapping[str, Any]], devices: Devices, stack: VirtualizationStack
    ) -> None:
        """Of guests that are there, or are about to be."""
        self._tables, self._devices, self._stack = list(tables), devices, stack
        uarts = [
            table["name"]
            for table in self._tables
            if any(each["kind"] == "uart" for each in table.get("emulated", ()))
        ]
        if uarts and self._emulation is not None:
            from partitions.emulated.consoles import EmulatedConsoles

            ports = EmulatedConsoles(self._emulation, self._nursery)
            for name in uarts:
                ports.open(name)
        if any(table.get("streams") for table in self._tables):
            self._begin_streams(stack)

    def _begin_streams(self, stack: VirtualizationStack) -> None:
        from partitions.streams.desk import StreamDesk
        from partitions.streams.dialler import Dialler

        self._dialler = Dialler(self._firmware)
        self._streams = stack.resources.streams = StreamDesk(
            self._nursery,
            lambda: self._guests().values(),
            self._dialler.dial,
            stack.resources.log,
            Route.DIRECT,
            {table["name"]: bool(table.get("streams")) for table in self._tables},
        )

    def _guests(self) -> dict[int, GuestBus]:
        """Those that have not ended, by partition."""
        assert self._stack is not None
        ended = self._stack.ended
        return {key: bus for key, bus in self._stack.guests.items() if key not in ended}

    def _id_of(self, name: str) -> int:
        """KeyError."""
        return {bus.name: key for key, bus in self._guests().items()}[name]

    def show_screen(self, name: str, fd: int) -> None:
        """A viewer has come; its connection, ours from here on."""
        if self._screens is None:
            from partitions.display.screens import Screens, screens_of

            assert self._stack is not None
            screens = screens_of(self._tables, self._devices)
            self._screens = Screens(screens, self._stack.resources.log)
        self._screens.admit(name, fd)

    def take_socket(self, verb: str, values: Mapping[str, Any], fds: list[int]) -> None:
        """That the platform has accepted, or connected, for us."""
        sock = socket.socket(fileno=fds[0]) if len(fds) == 1 else None
        if verb == "dialled" and self._dialler is not None:
            self._dialler.dialled(values, sock)
        elif sock is not None and verb == "capture":
            self._capture_desk().take(values, sock)
        elif sock is not None and verb == "stream" and self._streams is not None:
            self._nursery.start_soon(self._streams.serve_host, str(values.get("partition")), sock)
        elif sock is not None:
            sock.close()

    def _capture_desk(self) -> "CaptureDesk":
        if self._captures is None:
            from partitions.net.capture_desk import CaptureDesk

            attached = {
                table["name"]: tuple(one["name"] for one in table.get("device", ())) for table in self._tables
            }
            self._captures = CaptureDesk(self._devices, attached, self._id_of)
        return self._captures

    def heartbeat_of(self, name: str) -> str | None:
        if not any(table["name"] == name and table.get("integration") for table in self._tables):
            return None
        return self._integration().heartbeat_of(name)

    def _integration(self) -> "IntegrationControl":
        if self._control is None:
            from partitions.integration.control import IntegrationControl

            self._control = IntegrationControl(
                self._devices,
                self._id_of,
                lambda: [bus.name for bus in self._guests().values()],
                self._nursery,
            )
        return self._control

    def answer(self, values: Mapping[str, Any]) -> None:
        """A question of the platform's; the answer goes out when there is one."""
        self._nursery.start_soon(partial(self._answer, values))

    async def _answer(self, values: Mapping[str, Any]) -> None:
        from partitions.integration.control import IntegrationRefused

        answer: dict[str, object] = {"request": values.get("request")}
        try:
            answer |= await self._integration().perform(values["service"], values["name"], values["order"])
        except IntegrationRefused as refused:
            verb, answer["reason"] = "error", str(refused)[:_REASON_CHARACTERS_MAX]
        except (KeyError, TypeError, ValueError) as error:
            verb, answer["reason"] = "error", f"an order that is none: {error!r}"[:_REASON_CHARACTERS_MAX]
        else:
            verb = "answered"
        await self._firmware.send(verb, answer)

    async def _hand_over(self, verb: str, values: Mapping[str, object], fd: int) -> None:
        try:
            with contextlib.suppress(OSError):
                await self._firmware.send(verb, values, [fd])
        finally:
            os.close(fd)
