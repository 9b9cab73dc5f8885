"""What Linux reads of a disk when it attaches it, byte by byte as SPC-4 and SBC-3 lay it out."""

import hashlib

import pytest

from partitions.storage.identity import (
    UNMAP_BYTES_MAX,
    VPD_PAGES,
    DiskIdentity,
    build_capacity_16,
    build_inquiry,
    build_vital_product_data,
)
from partitions.storage.scsi import ScsiError

DISK = DiskIdentity(size_bytes=1 << 30, serial="disk0", max_transfer_bytes=256 << 10)
LARGE_BLOCKS = DiskIdentity(size_bytes=1 << 30, serial="d", block_bytes=4096, max_transfer_bytes=256 << 10)
SEALED = DiskIdentity(size_bytes=1 << 30, serial="d", max_transfer_bytes=256 << 10, read_only=True)
PLAIN = DiskIdentity(size_bytes=1 << 30, serial="d", max_transfer_bytes=256 << 10, can_discard=False)


def test_the_list_of_pages_names_each_in_order() -> None:
    assert build_vital_product_data(DISK, 0x00).hex(" ") == "00 00 00 06 00 80 83 b0 b1 b2"
    assert sorted(VPD_PAGES) == list(VPD_PAGES)
    for page in set(range(256)) - set(VPD_PAGES):
        with pytest.raises(ScsiError):
            build_vital_product_data(DISK, page)


def test_the_serial_number_is_the_devices_name() -> None:
    assert build_vital_product_data(DISK, 0x80) == b"\x00\x80\x00\x05disk0"


def test_two_designators_name_the_unit() -> None:
    """The vendor's, in ASCII (code set 2, type 1), and a locally assigned NAA (code set 1, type 3, first digit 3)."""
    text = b"PARTVSR disk0"
    number = bytearray(hashlib.sha256(text).digest()[:8])
    number[0] = 0x30 | number[0] & 0x0F
    wanted = b"\x02\x01\x00\x0d" + text + b"\x01\x03\x00\x08" + number
    assert build_vital_product_data(DISK, 0x83) == b"\x00\x83\x00" + bytes([len(wanted)]) + wanted


@pytest.mark.parametrize(
    ("disk", "granularity", "transfer", "unmap_blocks", "unmap_ranges"),
    [
        (DISK, 8, 512, UNMAP_BYTES_MAX // 512, 256),
        (LARGE_BLOCKS, 1, 64, UNMAP_BYTES_MAX // 4096, 256),
        (SEALED, 8, 512, 0, 0),
        (PLAIN, 8, 512, 0, 0),
    ],
)
def test_the_block_limits_say_how_large_a_request_may_be(
    disk: DiskIdentity, granularity: int, transfer: int, unmap_blocks: int, unmap_ranges: int
) -> None:
    page = build_vital_product_data(disk, 0xB0)

    def number(at: int, size: int) -> int:
        return int.from_bytes(page[at : at + size], "big")

    assert (page[:4], len(page)) == (b"\x00\xb0\x00\x3c", 64)
    assert number(6, 2) == granularity  # optimal transfer length granularity
    assert number(8, 4) == number(12, 4) == transfer  # maximum, optimal
    assert (number(20, 4), number(24, 4)) == (unmap_blocks, unmap_ranges)
    assert (number(28, 4), number(32, 4)) == (
        granularity,
        0x8000_0000,
    )  # of an UNMAP, and its alignment: valid, 0
    assert not any(page[4:6] + page[16:20] + page[36:])


def test_the_medium_does_not_turn() -> None:
    assert build_vital_product_data(DISK, 0xB1) == b"\x00\xb1\x00\x3c\x00\x01" + bytes(58)


@pytest.mark.parametrize(
    ("disk", "thin"), [(DISK, True), (LARGE_BLOCKS, True), (SEALED, False), (PLAIN, False)]
)
def test_provisioning_and_capacity_agree(disk: DiskIdentity, thin: bool) -> None:
    """UNMAP (LBPU), zeros behind it (LBPRZ), thin: and READ CAPACITY's LBPME and LBPRZ with it, or none of them."""
    page, capacity = build_vital_product_data(disk, 0xB2), build_capacity_16(disk)
    assert page.hex(" ") == ("00 b2 00 04 00 84 02 00" if thin else "00 b2 00 04 00 00 00 00")
    assert capacity[14] == (0xC0 if thin else 0)
    assert int.from_bytes(capacity[:8], "big") == disk.blocks - 1
    assert int.from_bytes(capacity[8:12], "big") == disk.block_bytes
    assert disk.block_bytes << (capacity[13] & 0xF) == disk.physical_block_bytes
    assert len(capacity) == 32


def test_the_standard_data_says_a_disk_of_spc_4() -> None:
    assert build_inquiry(True) == b"\x00\x00\x06\x12\x1f\x00\x00\x02PARTVSR Virtual Disk    1.0 "
