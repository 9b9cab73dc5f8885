"""The host's side of one mouse channel: what may be said, and where the guest believes the mouse to be. No I/O."""

import struct
from dataclasses import dataclass
from typing import Final, Self

from partitions.display.display_error import DisplayError
from partitions.display.mouse_wire import (
    VERSION,
    Buttons,
    DeviceInfo,
    DeviceInfoAck,
    MouseReport,
    MouseRequest,
    MouseResponse,
    decode_for_host,
)

_NONE: Final = Buttons(0)
_RECORD: Final = struct.Struct("<BBBHH")


@dataclass(slots=True)
class MouseSession:
    agreed: bool = False
    acknowledged: bool = False  # the guest knows what a report means
    buttons: Buttons = _NONE
    x: int = 0
    y: int = 0

    def receive(self, payload: bytes) -> list[bytes]:
        """What to answer. DisplayError: nothing has changed."""
        match decode_for_host(payload):
            case MouseRequest(version):
                self.agreed, self.acknowledged = version == VERSION, False
                self.buttons = Buttons(0)
                answers = [MouseResponse(VERSION, self.agreed).encode()]
                return [*answers, DeviceInfo().encode()] if self.agreed else answers
            case DeviceInfoAck():
                if not self.agreed:
                    raise DisplayError("descriptors are acknowledged that were not sent")
                self.acknowledged = True
        return []

    def move(self, buttons: Buttons, x: int, y: int, wheel: int = 0) -> list[bytes]:
        """What the guest is to be told: nothing, where nothing is new."""
        if not self.acknowledged or (not wheel and (buttons, x, y) == (self.buttons, self.x, self.y)):
            return []
        self.buttons, self.x, self.y = buttons, x, y
        return [MouseReport(buttons, x, y, wheel).encode()]

    def let_go(self) -> list[bytes]:
        """Every button goes up: whoever held it is no more."""
        return self.move(Buttons(0), self.x, self.y)

    def to_record(self) -> bytes:
        """A few bytes, of which a successor makes the same session."""
        return _RECORD.pack(self.agreed, self.acknowledged, self.buttons, self.x, self.y)

    @classmethod
    def from_record(cls, record: bytes) -> Self:
        agreed, acknowledged, buttons, x, y = _RECORD.unpack_from(record)
        return cls(bool(agreed), bool(acknowledged), Buttons(buttons & 7), x, y)
