"""What a guest's bus knows of the devices that it offers, and of those that it does not offer at the moment."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self
from uuid import UUID

from partitions.drivers.back_off import CHANNEL_BREAKS, BackOff
from partitions.machine_plan import AttachmentPlan
from partitions.storage.device import OfferedDevice

Devices = Mapping[str, OfferedDevice]
Plans = Mapping[str, AttachmentPlan]  # by device


@dataclass(slots=True)
class Offer:
    instance: UUID
    device: OfferedDevice
    plan: AttachmentPlan
    breaks: BackOff = field(default_factory=lambda: BackOff(CHANNEL_BREAKS))  # the guest's, of its ring

    @property
    def name(self) -> str:
        return self.device.name

    def to_state(self) -> list[Any]:
        return [self.name, self.instance.bytes, self.breaks.to_state()]

    @classmethod
    def from_state(cls, state: Any, devices: Devices, plans: Plans) -> Self:
        name, instance, breaks = state
        back_off = BackOff.from_state(CHANNEL_BREAKS, breaks)
        return cls(UUID(bytes=instance), devices[name], plans[name], back_off)


@dataclass(slots=True)
class Withheld:
    """A device that is not offered, for the time being or for good."""

    offer: Offer
    reason: str
    due_ns: int | None  # when it is offered again; None: never

    def to_state(self) -> list[Any]:
        return [*self.offer.to_state(), self.reason, self.due_ns]

    @classmethod
    def from_state(cls, state: Any, devices: Devices, plans: Plans) -> Self:
        *offer, reason, due_ns = state
        return cls(Offer.from_state(offer, devices, plans), reason, due_ns)

    def row(self) -> dict[str, Any]:
        """For `partvisor show`."""
        word = "failed" if self.due_ns is None else "withheld"
        return {"device": self.offer.name, "relid": 0, "state": word, "reason": self.reason}
