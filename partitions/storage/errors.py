"""What can go wrong with a disk, for its client. Branch on type, `errno` or `sense`; never on the text."""

import errno
from collections.abc import Mapping
from typing import Final

from partitions.storage.protocol import (
    SRB_AUTOSENSE_VALID,
    SRB_STATUS_MASK,
    NtStatus,
    ScsiRequest,
    SrbStatus,
)
from partitions.storage.sense import (
    INVALID_OPCODE,
    LUN_NOT_SUPPORTED,
    SPACE_EXHAUSTED,
    WRITE_PROTECTED,
    Sense,
    SenseKey,
    parse_sense,
)


class DiskError(Exception):
    """Base of all. `errno` is the nearest POSIX meaning."""

    errno: int = errno.EIO


class DiskCommandError(DiskError):
    """The disk, or its server, refused or failed one request; the disk goes on working."""

    def __init__(self, status: int, srb_status: int, scsi_status: int, sense: Sense | None) -> None:
        super().__init__(status, srb_status, scsi_status, sense)
        self.status = status  # NTSTATUS of the packet
        self.srb_status = srb_status  # without its flag bits
        self.scsi_status = scsi_status
        self.sense = sense
        self.errno = _errno_of(status, srb_status, sense)

    def __str__(self) -> str:
        cause = str(self.sense) if self.sense is not None else f"SRB status {self.srb_status:#x}"
        return f"{cause}, NTSTATUS {self.status:#010x} ({errno.errorcode.get(self.errno, self.errno)})"


class DiskShortTransferError(DiskError):
    """The server says success, but moved fewer bytes than the blocks that were asked for."""


class DiskProtocolError(DiskError):
    """The server's answer to the set-up makes no sense; there is no disk to use."""

    errno = errno.EPROTO


class DiskClosedError(DiskError):
    """The channel is gone (closed, rescinded or corrupt): whether the request was executed is unknown."""

    errno = errno.ENODEV


class DiskTimeoutError(DiskError):
    """No answer in the time allowed. The request is still in flight: its buffer stays taken."""

    errno = errno.ETIMEDOUT


class DiskNotSentError(DiskTimeoutError):
    """No room for the request in the time allowed: nothing was sent, its buffer is free."""


_BY_CODE: Final[Mapping[tuple[int, int], int]] = {
    (SPACE_EXHAUSTED.asc, SPACE_EXHAUSTED.ascq): errno.ENOSPC,
    (WRITE_PROTECTED.asc, WRITE_PROTECTED.ascq): errno.EROFS,
    (LUN_NOT_SUPPORTED.asc, LUN_NOT_SUPPORTED.ascq): errno.ENODEV,
    (INVALID_OPCODE.asc, INVALID_OPCODE.ascq): errno.EOPNOTSUPP,
}
_BY_KEY: Final[Mapping[int, int]] = {
    SenseKey.NOT_READY: errno.EAGAIN,
    SenseKey.ILLEGAL_REQUEST: errno.EINVAL,
    SenseKey.UNIT_ATTENTION: errno.EAGAIN,
    SenseKey.DATA_PROTECT: errno.EROFS,
    SenseKey.ABORTED_COMMAND: errno.ECANCELED,
}
_BY_SRB_STATUS: Final[Mapping[int, int]] = {
    SrbStatus.ABORTED: errno.ECANCELED,
    SrbStatus.BUSY: errno.EBUSY,
    SrbStatus.INVALID_REQUEST: errno.EINVAL,
    SrbStatus.NO_DEVICE: errno.ENODEV,
    SrbStatus.TIMEOUT: errno.ETIMEDOUT,
    SrbStatus.DATA_OVERRUN: errno.EINVAL,
    SrbStatus.REQUEST_FLUSHED: errno.ECANCELED,
    SrbStatus.INVALID_LUN: errno.ENODEV,
    SrbStatus.INVALID_TARGET: errno.ENODEV,
}
_BY_STATUS: Final[Mapping[int, int]] = {
    NtStatus.DEVICE_BUSY: errno.EBUSY,
    NtStatus.INVALID_PARAMETER: errno.EINVAL,
    NtStatus.INVALID_DEVICE_REQUEST: errno.EOPNOTSUPP,
    NtStatus.IO_TIMEOUT: errno.ETIMEDOUT,
    NtStatus.DEVICE_DOES_NOT_EXIST: errno.ENODEV,
    NtStatus.CANCELLED: errno.ECANCELED,
}


def _errno_of(status: int, srb_status: int, sense: Sense | None) -> int:
    if sense is not None:
        return _BY_CODE.get((sense.asc, sense.ascq), _BY_KEY.get(sense.key, errno.EIO))
    return _BY_STATUS.get(status, _BY_SRB_STATUS.get(srb_status, errno.EIO))


def command_error(status: int, answer: ScsiRequest) -> DiskCommandError | None:
    """None where packet, SRB and device all report success."""
    srb_status = answer.srb_status & SRB_STATUS_MASK
    if status == NtStatus.SUCCESS and srb_status == SrbStatus.SUCCESS and answer.scsi_status == 0:
        return None
    sense = parse_sense(answer.sense) if answer.srb_status & SRB_AUTOSENSE_VALID else None
    return DiskCommandError(status, srb_status, answer.scsi_status, sense)
