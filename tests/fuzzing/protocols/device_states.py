"""What a file says of emulated devices that go on: a guest then drives them, and nothing of that hurts their parent."""

import struct
from collections.abc import Callable
from typing import Final

from partitions.emulated.ide import SECTOR_BYTES, IdeDisk, RequestKind
from partitions.emulated.keyboard import KeyboardController
from partitions.emulated.port_device import STATE_BYTES_MAX, PortDevice
from partitions.emulated.rtc import RealTimeClock
from partitions.emulated.serial_port import SerialPort
from tests.fuzzing.pieces import cut, join
from tests.fuzzing.targets import Side, declare, target

_SECTORS: Final = 2048
_NOW_US: Final = 1_600_000_000_000_000
_DEVICES: Final[tuple[tuple[Callable[[], PortDevice], int], ...]] = (  # and their ports
    (SerialPort, 8),
    (KeyboardController, 2),
    (lambda: RealTimeClock(lambda: _NOW_US, 1 << 20, True), 2),
    (lambda: IdeDisk(_SECTORS, "disk0", False), 9),
)

declare("device-state", Side.READER)


def _seeds() -> list[bytes]:
    work = bytes(range(0, 250, 7)) + b"\x00\x17\x20\xff\x40" * 8
    return [join([bytes([place]), make().save(), work]) for place, (make, _) in enumerate(_DEVICES)]


@target("device-state", Side.READER, _seeds)
def reader(data: bytes) -> None:
    """It is refused, or the device goes on whatever a guest does next, and can be saved and go on again."""
    pieces = [*cut(data), b"", b"", b""]
    make, ports = _DEVICES[(pieces[0] or b"\0")[0] % len(_DEVICES)]
    device = make()
    try:
        device.restore(pieces[1])
    except (struct.error, ValueError, IndexError):
        return
    work = pieces[2][:400]
    for one, value in zip(work[::2], work[1::2], strict=False):
        offset = one % ports
        match one >> 5:
            case 0 | 1 | 2:
                assert device.read(offset, 1) <= 0xFF
            case 3:
                assert len(device.read_string(offset if ports < 9 else 0, 2, value)) == 2 * value
            case 4:
                device.write_string(offset if ports < 9 else 0, 2, bytes(2 * value))
            case _:
                device.write(offset, 1, value)
        if isinstance(device, IdeDisk) and (request := device.request) is not None:
            assert request.kind is RequestKind.FLUSH or request.lba < _SECTORS
            done = bytes(SECTOR_BYTES) if request.kind is RequestKind.READ else b""
            device.complete(request, done if value & 1 else None)
        device.take_interrupt()
    state = device.save()
    assert len(state) <= STATE_BYTES_MAX
    make().restore(state)
