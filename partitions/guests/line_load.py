"""A guest that writes to a serial line and reads the same back, measured; each byte is compared.

    args = { device = "serial0", loads = [{ bytes = 64 }, { bytes = 16384, flow = true }], seconds = 0.3 }

The other end of the line has to give back what it gets, as `partitions.serial.loopback` does. An exchange waits for
each piece to come back; a flow has up to FLOW_BYTES on the way.
"""

from collections.abc import Mapping
from typing import Any, Final

from bus.native import monotonic_ns
from bus.trace import Hop
from partitions.child import Partition
from partitions.measuring import Load, stamps_of
from partitions.serial.line import Line

SECONDS: Final = 0.3
FLOW_BYTES: Final = 32 << 10  # on the way at most: below what the line itself holds
_READ_BYTES: Final = 64 << 10
_PATIENCE_S: Final = 30.0


def name_of(plan: Mapping[str, Any]) -> str:
    return f"{plan['bytes']}-byte pieces, {'a flow' if plan.get('flow') else 'there and back'}"


def exchange(line: Line, size: int, seconds: float, load: Load) -> None:
    now, record, number, stamp = monotonic_ns, load.latency.record, 0, stamps_of(line)
    deadline = now() + int(seconds * 1e9)
    while now() < deadline:
        number += 1
        piece = number.to_bytes(size, "little")
        begun = now()
        if stamp is not None:
            stamp(Hop.CALL)
        line.write(piece, _PATIENCE_S)
        answer = line.read(size, _PATIENCE_S)
        while answer and len(answer) < size:
            answer += line.read(size - len(answer), _PATIENCE_S)
        if stamp is not None:
            stamp(Hop.RETURN)
        record(now() - begun)
        load.mismatches += answer != piece


def flow(line: Line, size: int, seconds: float, load: Load) -> None:
    """An operation is a piece that came back, whole."""
    now, record, number = monotonic_ns, load.latency.record, 0
    expected, read, written = bytearray(), 0, 0
    deadline = now() + int(seconds * 1e9)
    while True:
        begun = now()
        if begun >= deadline and read == written:
            break
        while begun < deadline and written - read + size <= FLOW_BYTES:
            number += 1
            piece = number.to_bytes(8, "little") * (size // 8)
            line.write(piece, _PATIENCE_S)
            expected += piece
            written += size
        answer = line.read(_READ_BYTES, _PATIENCE_S)
        record(now() - begun)
        if not answer:
            raise TimeoutError(f"{written - read} bytes do not come back")
        load.mismatches += answer != expected[: len(answer)]
        del expected[: len(answer)]
        read += len(answer)
    load.operations = read // size


def main(partition: Partition) -> int:
    """args: device, loads (tables: bytes, a multiple of 8; flow), seconds (of each)."""
    args = partition.args
    seconds, mismatches = float(args.get("seconds", SECONDS)), 0
    with partition.open_serial(str(args["device"])) as line:
        for plan in args["loads"]:
            size = int(plan["bytes"])
            if size < 8 or size % 8 or size > FLOW_BYTES:
                raise ValueError(f"bytes = {size}: a multiple of 8, at most {FLOW_BYTES}, is wanted")
            with partition.measuring(name_of(plan), transfer_bytes=size) as load:
                (flow if plan.get("flow") else exchange)(line, size, seconds, load)
            mismatches += load.mismatches
    return 1 if mismatches else 0
