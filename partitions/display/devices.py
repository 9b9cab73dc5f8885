"""Keyboard, mouse and screen as they are offered: each to one partition, with a server for its channel.

They have no driver that could be put elsewhere. What is behind them are viewers, who come to the process of the VMBus
server; so that process serves them, whatever the machine's architecture.
"""

from typing import Final, Generic, TypeVar
from uuid import UUID

from bus import guids
from bus.native import Channel, GpaMap
from bus.seam import Seam
from partitions.display.framebuffer import Framebuffer
from partitions.display.mouse_wire import Buttons
from partitions.display.vsp import DisplayVsp, KeyboardVsp, MouseVsp, VideoVsp
from partitions.machine_plan import DevicePlan
from partitions.stack.channel_client import ChannelClient

WIDTH_DEFAULT: Final = 1024  # pixels
HEIGHT_DEFAULT: Final = 768

VspT = TypeVar("VspT", bound=DisplayVsp)


class _Device(Generic[VspT]):
    """A ClientDevice, also where its channel is opened without one."""

    shares_channels = False

    def __init__(self, plan: DevicePlan) -> None:
        self.name = plan.name
        self._vsp: VspT | None = None  # of the last opening; one that was closed takes nothing any more

    def _make(self, channel: Channel, gpa_map: GpaMap, record: memoryview, seam: Seam) -> VspT:
        raise NotImplementedError

    def open(self, channel: Channel, gpa_map: GpaMap, record: memoryview, seam: Seam) -> VspT:
        self._vsp = vsp = self._make(channel, gpa_map, record, seam)
        return vsp

    def open_for(
        self, client: ChannelClient, channel: Channel, gpa_map: GpaMap, record: memoryview, seam: Seam
    ) -> VspT:
        return self.open(channel, gpa_map, record, seam)

    def close(self) -> None:
        """There is nothing behind it."""


class KeyboardDevice(_Device[KeyboardVsp]):
    interface: Final[UUID] = guids.KEYBOARD

    def _make(self, channel: Channel, gpa_map: GpaMap, record: memoryview, seam: Seam) -> KeyboardVsp:
        return KeyboardVsp(channel, record, seam)

    def press(self, key: int, pressed: bool) -> None:
        """Any thread. Never waits."""
        if self._vsp is not None:
            self._vsp.press(key, pressed)


class MouseDevice(_Device[MouseVsp]):
    interface: Final[UUID] = guids.MOUSE

    def _make(self, channel: Channel, gpa_map: GpaMap, record: memoryview, seam: Seam) -> MouseVsp:
        return MouseVsp(channel, record, seam)

    def move(self, buttons: Buttons, x: int, y: int, wheel: int = 0) -> None:
        """To a position from 0 to POSITION_MAX. Any thread. Never waits."""
        if self._vsp is not None:
            self._vsp.move(buttons, x, y, wheel)


class VideoDevice(_Device[VideoVsp]):
    interface: Final[UUID] = guids.VIDEO

    def __init__(self, plan: DevicePlan) -> None:
        super().__init__(plan)
        self.framebuffer: Final = Framebuffer(plan.width or WIDTH_DEFAULT, plan.height or HEIGHT_DEFAULT)

    def _make(self, channel: Channel, gpa_map: GpaMap, record: memoryview, seam: Seam) -> VideoVsp:
        return VideoVsp(channel, gpa_map, record, seam, self.framebuffer)
