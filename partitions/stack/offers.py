"""What a guest's bus knows of the devices that it offers, and of those that it does not offer at the moment."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Self
from uuid import UUID

from bus import guids
from bus.channel_states import ChannelState
from bus.native import Channel, GpaMap
from bus.seam import Seam
from partitions.machine_plan import AttachmentPlan
from partitions.stack.back_off import CHANNEL_BREAKS, BackOff
from partitions.stack.channel_host import ChannelHost
from partitions.stack.offered_device import OfferedDevice
from partitions.stack.served_channel import Service
from runtime.abi import Route

Devices = Mapping[str, OfferedDevice]
Plans = Mapping[str, AttachmentPlan]  # by device


class RemovedDevice:
    """An OfferedDevice that was taken out of the machine. Its guest has not let go of the offer yet."""

    interface: Final[UUID] = guids.SCSI  # of no matter: its offer was made, and withdrawn

    def __init__(self, name: str) -> None:
        self.name = name

    def open(self, channel: Channel, gpa_map: GpaMap, record: memoryview, seam: Seam) -> Service:
        raise LookupError(f"{self.name} has been removed")

    def close(self) -> None: ...


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
        device = devices.get(name) or RemovedDevice(name)
        plan = plans.get(name) or AttachmentPlan(name, 0, Route.DIRECT, "block")
        return cls(UUID(bytes=instance), device, plan, back_off)


def row_of(
    relid: int, offer: Offer, state: ChannelState | None, host: ChannelHost, sub_channel: int = 0
) -> dict[str, Any]:
    """For `partvisor show`: an offered device, and its channel's counters while it is open."""
    row: dict[str, Any] = {
        "device": offer.name,
        "relid": relid,
        "state": state.name.lower() if state is not None else "gone",
        "signal_route": offer.plan.route.name.lower(),
        "waiting": offer.plan.waiting,
        "transport": "ring",
        "memory": host.memory.extents_of_channel(relid),
    }
    if sub_channel:
        row["sub_channel"] = sub_channel
    return row | host.statistics(relid)


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
