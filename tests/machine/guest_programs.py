"""Guest programs that only tests need."""

from pathlib import Path

from bus.channel_events import SendMessage
from bus.gpadl import MAX_GPADL_PAGES
from bus.guids import SCSI
from bus.packets import GpaRange
from partitions.child import Partition
from partitions.machine_plan import instance_guid

LONG_LISTS = 10  # of 64 KiB each: more than the root's saved state can hold


def list_descriptors(partition: Partition) -> None:
    """Report what this process holds, as /proc says it."""
    links = []
    for path in Path("/proc/self/fd").iterdir():
        try:
            links.append(str(path.readlink()))
        except FileNotFoundError:  # the directory's own
            continue
    partition.report("descriptors", links=sorted(links))


def never_end_gpadls(partition: Partition) -> None:
    """Begin long page lists, and end none of them."""
    vmbus = partition.vmbus
    offer = vmbus.find_offer(SCSI, instance_guid(partition.name, "disk0"))
    for _ in range(LONG_LISTS):
        pages = GpaRange.contiguous(0x1000, MAX_GPADL_PAGES * 4096)
        _, messages = vmbus._client.create_gpadl(offer.relid, [pages])
        for message in messages[:-1]:
            assert isinstance(message, SendMessage)
            vmbus._post(message.connection_id, message.payload)
    partition.report("begun", lists=LONG_LISTS)
