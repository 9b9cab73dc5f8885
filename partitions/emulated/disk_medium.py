"""What an emulated IDE disk stands on: a disk device of the root's, whose backend carries its requests out."""

from partitions.emulated.ide import SECTOR_BYTES, DiskRequest, IdeDisk, RequestKind
from partitions.storage.backends import BackendError
from partitions.storage.device import DiskDevice


def ide_disk(disk: DiskDevice) -> IdeDisk:
    return IdeDisk(disk.backend.size_bytes // SECTOR_BYTES, disk.name, disk.backend.read_only)


def carry_out(disk: DiskDevice, request: DiskRequest) -> bytes | None:
    """In a thread. None: the medium failed."""
    offset = request.lba * SECTOR_BYTES
    try:
        with disk.exclusive():
            if request.kind is RequestKind.READ:
                data = bytearray(SECTOR_BYTES)
                disk.medium.readv([memoryview(data)], offset)
                return bytes(data)
            if request.kind is RequestKind.WRITE:
                disk.medium.writev([memoryview(request.data)], offset)
            else:
                disk.medium.flush()
            return b""
    except BackendError:
        return None
