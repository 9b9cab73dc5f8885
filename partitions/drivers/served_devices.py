"""What a driver's process serves: the one device of its partition, or all that a monitor passes on."""

from typing import Protocol

from bus.seam import Seam
from partitions.calls.endpoint_service import EndpointService
from partitions.calls.serving import Caller
from partitions.drivers.driven_device import CalledBothWays, DrivenDevice, medium_of
from partitions.faults.faulty_medium import FaultyMedium
from partitions.stack.offered_device import OfferedDevice


class DrivenDevices(Protocol):
    """What a driver serves: its device, or, of a monitor, several."""

    def select(self, number: int, kind: str) -> OfferedDevice:
        """Of several, this one. LookupError: there is none."""

    def open_messages(self, caller: Caller, record: memoryview, seam: Seam) -> EndpointService: ...
    def medium(self, name: str) -> FaultyMedium | None:
        """Of a device of that name; None: there is none, or it has no medium."""

    def settled(self, first: bool) -> None:
        """All that predecessors had begun is done; `first`: of this process."""

    def stick(self) -> None: ...
    def close(self) -> None: ...


class OneDevice:
    """The one device of a driver partition."""

    def __init__(self, device: DrivenDevice) -> None:
        self._device = device
        self.stick, self.close = device.stick, device.close

    def select(self, number: int, kind: str) -> OfferedDevice:
        return self._device

    def open_messages(self, caller: Caller, record: memoryview, seam: Seam) -> EndpointService:
        if isinstance(self._device, CalledBothWays):
            return self._device.open_calls(caller, record, seam)
        return self._device.open_messages(record, seam)

    def medium(self, name: str) -> FaultyMedium | None:
        return medium_of(self._device) if self._device.name == name else None

    def settled(self, first: bool) -> None:
        pass
