"""The ids and the page by which a guest's intercepts reach who emulates its devices, past the hypervisor.

They stand beside those that a VMBus server gives out (partitions.stack.vmbus_ports) and differ from each of them.
"""

from typing import Final

_INTERCEPT_PORT: Final = 0x6_0000  # in who emulates devices: | the guest's partition id
GUEST_INTERCEPT_PORT: Final = 0x5_0001  # in a guest with direct intercepts: it was answered
GUEST_INTERCEPT_CONNECTION: Final = 0x5_0001  # of the same: it asks
INTERCEPT_PAGE_GPFN: Final = 0xE_E000  # in its GPA space: the page for both
_ID_MASK: Final = 0xFFFF


def intercept_port(partition: int) -> int:
    """Our port for one guest's direct intercepts; also the id of our connection to its port."""
    if not 0 < partition <= _ID_MASK:
        raise ValueError(f"partition id {partition}: the intercept ports have 16 bits of it")
    return _INTERCEPT_PORT | partition
