"""Who answers a guest that asks for a stream, as its bus knows it."""

from collections.abc import Callable
from typing import Protocol
from uuid import UUID

from bus.channel_actions import ConnectStream
from partitions.machine_plan import AttachmentPlan
from partitions.stack.offered_device import OfferedDevice


class StreamBus(Protocol):
    """What there is to do at a guest's bus."""

    @property
    def name(self) -> str: ...
    @property
    def offer(self) -> Callable[[UUID, OfferedDevice, AttachmentPlan], None]: ...
    def remove(self, device: str) -> None: ...
    def refuse_stream(self, request: ConnectStream) -> None: ...


class StreamAnswers(Protocol):
    def asked(self, bus: StreamBus, request: ConnectStream) -> None: ...
