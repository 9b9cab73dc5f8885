"""The two message ports between a stack and the partition of a driver."""

from bus.synic import VMBUS_SINT
from partitions.stack.stack_resources import RootResources
from partitions.stack.vmbus_ports import DRIVER_ANSWER_CONNECTION, DRIVER_COMMAND_PORT, driver_port
from runtime.abi import PortType


def connect_driver(stack: RootResources, driver: int) -> None:
    """One each way. Raises HypercallError: too little memory was deposited."""
    call, ours = stack.hypercalls, driver_port(driver)
    call.create_port(ours, driver, PortType.MESSAGE, VMBUS_SINT, stack.vp)
    call.connect_port(DRIVER_ANSWER_CONNECTION, stack.partition, ours, partition=driver)
    call.create_port(DRIVER_COMMAND_PORT, stack.partition, PortType.MESSAGE, VMBUS_SINT, 0, partition=driver)
    call.connect_port(ours, driver, DRIVER_COMMAND_PORT)
