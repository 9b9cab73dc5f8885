"""GUIDs that name devices in channel offers. On the wire: `uuid.UUID.bytes_le`.

Sources: Linux include/linux/hyperv.h; openvmm vm/devices.
"""

from typing import Final
from uuid import UUID

# -- interface types: which driver binds to the channel
SCSI: Final = UUID("ba6163d9-04a1-4d29-b605-72e2ffb1dc7f")
NETWORK: Final = UUID("f8615163-df3e-46c5-913f-f2d2f965ed0e")
KEYBOARD: Final = UUID("f912ad6d-2b17-48ea-bd65-f927a61c7684")
MOUSE: Final = UUID("cfa8b69e-5b4a-4cc0-b98b-8ba1a1f3f95a")
VIDEO: Final = UUID("da0a7802-e377-4aac-8e77-0558eb1073f8")
SHUTDOWN: Final = UUID("0e0b6031-5213-4934-818b-38d90ced39db")
TIME_SYNC: Final = UUID("9527e630-d0ae-497b-adce-e80ab0175caf")
HEARTBEAT: Final = UUID("57164f39-9115-4e78-ab55-382f3bd5422d")
KEY_VALUE_PAIRS: Final = UUID("a9a0f4e7-5a45-4d96-b827-8a841e8c03e6")
SNAPSHOT: Final = UUID("35fa2e29-ea23-4236-96ae-3a6ebacba440")  # VSS

# -- instances of the services that a partition has once; a device's is made of its name
SHUTDOWN_INSTANCE: Final = UUID("b6650ff7-33bc-4840-8048-e0676786f393")
TIME_SYNC_INSTANCE: Final = UUID("2dd1ce17-079e-403c-b352-a1921ee207ee")
KEY_VALUE_PAIRS_INSTANCE: Final = UUID("242ff919-07db-4180-9c2e-b86cb68c8c55")
HEARTBEAT_INSTANCE: Final = UUID("fd149e91-82e0-4a7d-afa6-2a4166cbd7c0")
SNAPSHOT_INSTANCE: Final = UUID("2450ee40-33bf-4fbd-892e-9fb06e9214cf")

# -- hv_sock: the first 32 bits of the interface type are the vsock port
_VSOCK_TEMPLATE: Final = UUID("00000000-facb-11e6-bd58-64006a7986d3")
_VSOCK_LOW_96: Final = (1 << 96) - 1


def vsock_service(port: int) -> UUID:
    """Interface type of the hv_sock service at a vsock port, a u32."""
    if not 0 <= port < 1 << 32:
        raise ValueError(f"vsock port {port}")
    return UUID(int=port << 96 | _VSOCK_TEMPLATE.int)


def vsock_port(service: UUID) -> int | None:
    """The vsock port that a service GUID names; None if it is not made from the template."""
    return service.int >> 96 if service.int & _VSOCK_LOW_96 == _VSOCK_TEMPLATE.int else None
