"""The guest's end of a mouse.

with partition.open_mouse("mouse0") as mouse:
    while (report := mouse.read()) is not None:
        x, y = to_pixel(report.x, video.width), to_pixel(report.y, video.height)
"""

from typing import Final

from bus.native import Channel
from partitions.display.conversation import Conversation, DisplayClosedError
from partitions.display.mouse_wire import (
    VERSION,
    DeviceInfo,
    DeviceInfoAck,
    MouseReport,
    MouseRequest,
    MouseResponse,
    ToMouseGuest,
    decode_for_guest,
)
from partitions.display.mouse_wire import to_pixel as to_pixel


class Mouse:
    """Ready to report from the start. One thread uses it."""

    def __init__(self, channel: Channel) -> None:
        """DisplayClosedError: the host knows no such version, or does not answer."""
        self._conversation: Final[Conversation[ToMouseGuest]] = Conversation(channel, decode_for_guest)
        self._conversation.send(MouseRequest(VERSION).encode())
        if not self._conversation.wait_for(MouseResponse).approved:
            raise DisplayClosedError("the host does not know this version of the mouse")
        self.info = self._conversation.wait_for(DeviceInfo)
        self._conversation.send(DeviceInfoAck().encode())
        self.reports = 0

    @property
    def malformed(self) -> int:
        return self._conversation.malformed

    def read(self, timeout_s: float | None = None) -> MouseReport | None:
        """Where it is, and which buttons are down. None: nothing new, for so long. DisplayClosedError."""
        while (message := self._conversation.next(timeout_s)) is not None:
            if isinstance(message, MouseReport):
                self.reports += 1
                return message
        return None
