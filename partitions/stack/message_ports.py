"""The message ports between a guest and who serves its VMBus."""

from typing import Final

from bus.synic import CONTACT_CONNECTION, MESSAGE_CONNECTION, VMBUS_SINT
from partitions.stack.stack_resources import RootResources
from partitions.stack.vmbus_ports import GUEST_MESSAGE_PORT, root_legacy_message_port, root_message_port
from runtime.abi import PortType

_GUEST_VP: Final = 0  # where VMBus messages go


def connect_message_ports(stack: RootResources, guest: int) -> None:
    """Create them in both directions. HypercallError: for instance, too little memory deposited."""
    call, port, root = stack.hypercalls, root_message_port(guest), stack.partition
    call.create_port(port, guest, PortType.MESSAGE, VMBUS_SINT, stack.vp)
    call.connect_port(CONTACT_CONNECTION, root, port, partition=guest)
    legacy_port = root_legacy_message_port(guest)  # a port takes one connection
    call.create_port(legacy_port, guest, PortType.MESSAGE, VMBUS_SINT, stack.vp)
    call.connect_port(MESSAGE_CONNECTION, root, legacy_port, partition=guest)
    call.create_port(GUEST_MESSAGE_PORT, root, PortType.MESSAGE, VMBUS_SINT, _GUEST_VP, partition=guest)
    call.connect_port(port, guest, GUEST_MESSAGE_PORT)
