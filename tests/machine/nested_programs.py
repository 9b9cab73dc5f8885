"""Programs of nested partitions that only tests need."""

from collections.abc import Callable
from functools import partial
from typing import Final

from bus.synic import CONTACT_CONNECTION, MESSAGE_CONNECTION, VMBUS_SINT
from partitions.child import Partition
from partitions.stack.vmbus_ports import guest_channel_port, root_message_port, server_event_port
from runtime.abi import (
    CREATE_PARTITION_PAGES,
    INITIALIZE_PARTITION_PAGES,
    VP_PAGES,
    HvStatus,
    HypercallError,
    PartitionProperty,
    PortType,
    Privilege,
)

_PLACE: Final = 0x4000_0000  # where nothing of ours is
_PORT: Final = 0x7_0000


def status_of(call: Callable[[], object]) -> str:
    try:
        call()
    except HypercallError as error:
        return HvStatus(error.status).name
    return "SUCCESS"


def spend_a_deposit(partition: Partition) -> None:
    """Create children until the pool is empty, and one more; then with one child: too little, a deposit, enough."""
    call, report = partition.hypercalls, partition.report
    before_all = call.balance().in_use_pages
    statuses: list[str] = []
    children: list[int] = []
    rest = call.balance().available_pages % CREATE_PARTITION_PAGES
    first = call.create_partition()
    report(
        "more_than_it_has", status=status_of(lambda: call.deposit(first, call.balance().available_pages + 1))
    )
    spare = call.balance().available_pages - 3 * CREATE_PARTITION_PAGES - rest
    call.deposit(first, spare)  # where it is out of reach
    while (status := status_of(lambda: children.append(call.create_partition()))) == "SUCCESS":
        statuses.append(status)
    report("until_empty", created=len(statuses), then=status, available=call.balance().available_pages)
    call.withdraw(first, spare)
    before = status_of(lambda: call.initialize(first))
    call.deposit(first, INITIALIZE_PARTITION_PAGES)
    after = status_of(lambda: call.initialize(first))
    without_pages = status_of(lambda: call.create_vp(0, first))
    call.deposit(first, VP_PAGES)
    report(
        "retried", before=before, after=after, vp=[without_pages, status_of(lambda: call.create_vp(0, first))]
    )
    call.finalize(first)
    for child in [first, *children]:
        call.delete(child)
    report("all_back", in_use_before=before_all, in_use_after=call.balance().in_use_pages)


def reach_out(partition: Partition) -> None:
    """Try every call that names a partition on all but oneself (ids are small), and all others' connections.

    Reports what was not refused.
    """
    call, my_id = partition.hypercalls, partition.id
    worked: list[str] = []
    assert partition.vmbus is not None  # connected, so that what is ours is there
    for other in (one for one in range(1, 16) if one != my_id):
        attempts: dict[str, Callable[[], object]] = {
            "get_state": partial(call.get_state, other),
            "set_weight": partial(call.set_property, other, PartitionProperty.CPU_WEIGHT, 1),
            "set_privileges": partial(call.set_privileges, other, Privilege(0)),
            "finalize": partial(call.finalize, other),
            "delete": partial(call.delete, other),
            "children": partial(call.get_next_child, 0, other),
            "deposit": partial(call.deposit, other, 1),
            "withdraw": partial(call.withdraw, other, 1),
            "balance": partial(call.balance, other),
            "map_theirs": partial(call.map_partition_pages, other, 0x1000, 1, _PLACE),
            "map_into": partial(call.map_gpa_pages, _PLACE, 1, partition=other),
            "unmap": partial(call.unmap_gpa_pages, 0x1000, 1 << 20, other),
            "create_vp": partial(call.create_vp, 7, other),
            "delete_vp": partial(call.delete_vp, 0, other),
            "start_vp": partial(call.start_vp, other),
            "create_port": partial(
                call.create_port, _PORT, my_id, PortType.MESSAGE, VMBUS_SINT, partition=other
            ),
        }
        for number in range(1, 16):
            for port in (root_message_port(number), server_event_port(number), guest_channel_port(number)):
                attempts[f"connect {port:#x}"] = partial(call.connect_port, _PORT, other, port)
                attempts[f"delete {port:#x}"] = partial(call.delete_port, port, other)
        worked += [
            f"{name} of {other}" for name, attempt in attempts.items() if status_of(attempt) == "SUCCESS"
        ]
    ours = {CONTACT_CONNECTION, MESSAGE_CONNECTION}
    for connection in (one for one in range(1, 0x200) if one not in ours):
        if status_of(partial(call.post_message, connection, 1, b"")) == "SUCCESS":
            worked.append(f"post to {connection:#x}")
    partition.report("reached", worked=worked)


def leave_at_once(partition: Partition) -> None:
    """Not a word to anybody."""
