"""What who runs a device's driver needs of it: a process of the device's own, or the process of its VMBus server."""

from typing import Protocol, runtime_checkable

from bus.seam import Seam
from partitions.calls.endpoint_service import EndpointService
from partitions.calls.serving import Caller
from partitions.faults.faulty_medium import FaultyMedium
from partitions.stack.offered_device import OfferedDevice


@runtime_checkable
class DrivenDevice(OfferedDevice, Protocol):
    """A device with its driver, whatever its class."""

    def open_messages(self, record: memoryview, seam: Seam) -> EndpointService:
        """Serve a client without rings. `record`: where a predecessor stood, or zeros."""

    def stick(self) -> None:
        """A fault on purpose: from now on nothing is served."""

    def close(self) -> None:
        """All that was done is where it survives."""


@runtime_checkable
class CalledBothWays(Protocol):
    """A DrivenDevice that has something to say which nobody asked for. Its clients have a second connection, on which
    they keep one call that is answered when there is something."""

    def open_calls(self, caller: Caller, record: memoryview, seam: Seam) -> EndpointService:
        """In the place of `open_messages`."""


@runtime_checkable
class HasMedium(Protocol):
    """A device that keeps what it is given: a disk."""

    medium: FaultyMedium


def medium_of(device: object) -> FaultyMedium | None:
    return device.medium if isinstance(device, HasMedium) else None


class PassedOnDevice(OfferedDevice, Protocol):
    """A device of somebody else's, to be offered on."""

    def settled(self) -> None:
        """All that predecessors of ours had begun is done."""

    def stick(self) -> None: ...
    def close(self) -> None: ...
