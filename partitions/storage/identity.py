"""What a disk says about itself: INQUIRY and its vital product data, capacity, mode pages, LUNs.

Built by the target, parsed by the client. Sources: SPC-4 6.6, 7.5, 7.8; SBC-3 5.15, 5.16, 6.4, 6.6.
"""

import hashlib
import struct
from dataclasses import dataclass
from typing import Final

from partitions.storage.scsi import ModeSense, ScsiError
from partitions.storage.sense import INVALID_FIELD_IN_CDB, SAVING_NOT_SUPPORTED

VENDOR: Final = "PARTVSR"
PRODUCT: Final = "Virtual Disk"
REVISION: Final = "1.0"
BLOCK_BYTES: Final = 512
PHYSICAL_BLOCK_BYTES: Final = 4096
NO_DEVICE: Final = 0x7F  # peripheral qualifier 3, type 0x1F: no device can be at this LUN
_DISK: Final = 0x00
_SPC_4: Final = 0x06
_RESPONSE_FORMAT: Final = 0x12  # format 2, hierarchical LUNs
_COMMAND_QUEUE: Final = 0x02
UNMAP_DESCRIPTORS_MAX: Final = 256
UNMAP_BYTES_MAX: Final = 1 << 30  # a request; bounds the time for which one UNMAP holds up its channel

_STANDARD: Final = struct.Struct(">BBBBBBBB8s16s4s")
_VPD_HEAD: Final = struct.Struct(">BBH")
_BLOCK_LIMITS: Final = struct.Struct(">BBHIIIIIIIQ20s")
_CAPACITY_10: Final = struct.Struct(">II")
_CAPACITY_16: Final = struct.Struct(">QIBBH16s")
_MODE_HEAD_6: Final = struct.Struct(">BBBB")
_MODE_HEAD_10: Final = struct.Struct(">HBBHH")
_BLOCK_DESCRIPTOR: Final = struct.Struct(">II")
_CACHING_BYTES: Final = 20
_CONTROL_BYTES: Final = 12
assert _STANDARD.size == 36
assert _BLOCK_LIMITS.size == 0x3C  # the page length that SBC-3 fixes
assert _CAPACITY_16.size == 32

VPD_SUPPORTED: Final = 0x00
VPD_SERIAL: Final = 0x80
VPD_DEVICE_ID: Final = 0x83
VPD_BLOCK_LIMITS: Final = 0xB0
VPD_CHARACTERISTICS: Final = 0xB1
VPD_PROVISIONING: Final = 0xB2
VPD_PAGES: Final = (
    VPD_SUPPORTED,
    VPD_SERIAL,
    VPD_DEVICE_ID,
    VPD_BLOCK_LIMITS,
    VPD_CHARACTERISTICS,
    VPD_PROVISIONING,
)

MODE_CACHING: Final = 0x08
MODE_CONTROL: Final = 0x0A
MODE_ALL: Final = 0x3F
SUBPAGE_ALL: Final = 0xFF
PAGE_CONTROL_CHANGEABLE: Final = 1
PAGE_CONTROL_SAVED: Final = 3
_WRITE_PROTECTED: Final = 0x80  # device-specific parameter of a disk
_DPOFUA: Final = 0x10
_WRITE_CACHE_ENABLED: Final = 0x04


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskIdentity:
    """All that a target needs to describe its disk. `size_bytes` is a positive multiple of `block_bytes`."""

    size_bytes: int
    serial: str  # printable ASCII, stable over reboots
    block_bytes: int = BLOCK_BYTES
    physical_block_bytes: int = PHYSICAL_BLOCK_BYTES
    max_transfer_bytes: int
    read_only: bool = False
    can_discard: bool = True  # and a discarded block then reads as zeros

    def __post_init__(self) -> None:
        if self.block_bytes not in (512, 1024, 2048, 4096):
            raise ValueError(f"block_bytes {self.block_bytes}: want 512, 1024, 2048 or 4096")
        if self.size_bytes <= 0 or self.size_bytes % self.block_bytes:
            raise ValueError(f"size_bytes {self.size_bytes}: want a positive multiple of {self.block_bytes}")
        if not (self.serial.isascii() and self.serial.isprintable() and 0 < len(self.serial) <= 32):
            raise ValueError(f"serial {self.serial!r}: want 1 to 32 printable ASCII characters")

    @property
    def blocks(self) -> int:
        return self.size_bytes // self.block_bytes


def _text(value: str, width: int) -> bytes:
    return value.encode("ascii")[:width].ljust(width)


def build_inquiry(present: bool) -> bytes:
    """Standard INQUIRY data; `present` false: for a LUN behind which there is nothing."""
    return _STANDARD.pack(
        _DISK if present else NO_DEVICE,
        0,
        _SPC_4,
        _RESPONSE_FORMAT,
        _STANDARD.size - 5,
        0,
        0,
        _COMMAND_QUEUE if present else 0,
        _text(VENDOR, 8),
        _text(PRODUCT, 16),
        _text(REVISION, 4),
    )


def _device_id(identity: DiskIdentity) -> bytes:
    """Two designators of the logical unit: T10 vendor id with the serial, and a locally assigned NAA."""
    vendor = _text(VENDOR, 8) + identity.serial.encode("ascii")
    digest = hashlib.sha256(vendor).digest()[:8]
    naa = bytes([0x30 | digest[0] & 0x0F]) + digest[1:]
    return b"".join(
        bytes([code_set, kind, 0, len(value)]) + value
        for code_set, kind, value in ((2, 1, vendor), (1, 3, naa))
    )


def _block_limits(identity: DiskIdentity) -> bytes:
    block = identity.block_bytes
    discard = identity.can_discard and not identity.read_only
    return _BLOCK_LIMITS.pack(
        0,
        0,  # COMPARE AND WRITE: none
        identity.physical_block_bytes // block,  # optimal transfer granularity
        identity.max_transfer_bytes // block,
        identity.max_transfer_bytes // block,
        0,
        UNMAP_BYTES_MAX // block if discard else 0,
        UNMAP_DESCRIPTORS_MAX if discard else 0,
        identity.physical_block_bytes // block,
        0x80000000,  # the alignment that follows is valid, and is 0
        0,
        bytes(20),
    )


def build_vital_product_data(identity: DiskIdentity, page: int) -> bytes:
    """One VPD page. Raises ScsiError for one that is not in VPD_PAGES."""
    if page == VPD_SUPPORTED:
        body = bytes(VPD_PAGES)
    elif page == VPD_SERIAL:
        body = identity.serial.encode("ascii")
    elif page == VPD_DEVICE_ID:
        body = _device_id(identity)
    elif page == VPD_BLOCK_LIMITS:
        body = _block_limits(identity)
    elif page == VPD_CHARACTERISTICS:
        body = struct.pack(">H", 1).ljust(0x3C, b"\0")  # rotation rate 1: not a spinning medium
    elif page == VPD_PROVISIONING:
        discard = identity.can_discard and not identity.read_only
        # UNMAP offered, unmapped blocks read zero; provisioning type 2 is thin
        body = bytes([0, 0x84, 0x02, 0]) if discard else bytes(4)
    else:
        raise ScsiError(INVALID_FIELD_IN_CDB)
    return _VPD_HEAD.pack(_DISK, page, len(body)) + body


def build_capacity_10(identity: DiskIdentity) -> bytes:
    return _CAPACITY_10.pack(min(identity.blocks - 1, 0xFFFFFFFF), identity.block_bytes)


def build_capacity_16(identity: DiskIdentity) -> bytes:
    exponent = (identity.physical_block_bytes // identity.block_bytes).bit_length() - 1
    provisioning = 0xC000 if identity.can_discard and not identity.read_only else 0  # LBPME, LBPRZ
    return _CAPACITY_16.pack(identity.blocks - 1, identity.block_bytes, 0, exponent, provisioning, bytes(16))


@dataclass(frozen=True, slots=True)
class Capacity:
    blocks: int
    block_bytes: int
    can_discard: bool = False

    @property
    def size_bytes(self) -> int:
        return self.blocks * self.block_bytes


def parse_capacity_10(data: bytes) -> Capacity | None:
    """None: the disk is too large for this form (or the data too short); ask with READ CAPACITY(16)."""
    if len(data) < _CAPACITY_10.size:
        return None
    last, block = _CAPACITY_10.unpack_from(data)
    return None if last == 0xFFFFFFFF else Capacity(last + 1, block)


def parse_capacity_16(data: bytes) -> Capacity | None:
    """None where the data is cut short."""
    if len(data) < _CAPACITY_16.size:
        return None
    last, block, _, _, provisioning, _ = _CAPACITY_16.unpack_from(data)
    return Capacity(last + 1, block, bool(provisioning & 0x8000))


@dataclass(frozen=True, slots=True)
class InquiryData:
    present: bool
    vendor: str
    product: str
    revision: str


def parse_inquiry(data: bytes) -> InquiryData | None:
    """None where the data is cut short."""
    if len(data) < _STANDARD.size:
        return None
    fields = _STANDARD.unpack_from(data)
    vendor, product, revision = (field.decode("ascii", "replace").strip() for field in fields[8:11])
    return InquiryData(fields[0] == _DISK, vendor, product, revision)


def _mode_page(page: int, changeable: bool) -> bytes:
    """Nothing can be changed: there is no MODE SELECT. A changeable mask is therefore all zeros."""
    if page == MODE_CACHING:
        values = bytes([_WRITE_CACHE_ENABLED])
        return bytes([page, _CACHING_BYTES - 2]) + (b"" if changeable else values).ljust(
            _CACHING_BYTES - 2, b"\0"
        )
    return bytes([page, _CONTROL_BYTES - 2]) + bytes(_CONTROL_BYTES - 2)


def build_mode_sense(identity: DiskIdentity, command: ModeSense) -> bytes:
    """Header, block descriptor unless unwanted, pages. Raises ScsiError for pages or values that we lack."""
    if command.page_control == PAGE_CONTROL_SAVED:
        raise ScsiError(SAVING_NOT_SUPPORTED)
    if command.page == MODE_ALL and command.subpage in (0, SUBPAGE_ALL):
        pages: tuple[int, ...] = (MODE_CACHING, MODE_CONTROL)
    elif command.page in (MODE_CACHING, MODE_CONTROL) and command.subpage == 0:
        pages = (command.page,)
    else:
        raise ScsiError(INVALID_FIELD_IN_CDB)
    changeable = command.page_control == PAGE_CONTROL_CHANGEABLE
    body = b"".join(_mode_page(page, changeable) for page in pages)
    blocks = b""
    if not command.no_block_descriptor:
        blocks = _BLOCK_DESCRIPTOR.pack(min(identity.blocks, 0xFFFFFFFF), identity.block_bytes)
    device = (_WRITE_PROTECTED if identity.read_only else 0) | _DPOFUA
    if command.long:
        total = _MODE_HEAD_10.size + len(blocks) + len(body)
        return _MODE_HEAD_10.pack(total - 2, 0, device, 0, len(blocks)) + blocks + body
    total = _MODE_HEAD_6.size + len(blocks) + len(body)
    return _MODE_HEAD_6.pack(total - 1, 0, device, len(blocks)) + blocks + body


def parse_write_protected(data: bytes) -> bool | None:
    """From MODE SENSE(6) data; None where it is cut short."""
    return bool(data[2] & _WRITE_PROTECTED) if len(data) >= _MODE_HEAD_6.size else None


def build_luns(select: int) -> bytes:
    """REPORT LUNS of a controller that holds one disk, at LUN 0; select 1 wants well-known units: none."""
    luns = b"" if select == 1 else bytes(8)
    return struct.pack(">II", len(luns), 0) + luns
