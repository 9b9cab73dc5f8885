"""Two guests on one network, measured: one asks with frames, the other answers them or takes them in.

    asker:    args = { device = "net0", loads = [{ bytes = 64 }, { bytes = 65535, flow = true }], seconds = 0.3 }
    answerer: args = { device = "net0" }

An exchange is a frame there and the same one back, each compared. A flow goes one way, and counts what arrived: the
answerer says how many did, and a frame that was lost on the way is in no figure but its own event.
"""

import struct
import time
from collections.abc import Mapping
from typing import Any, Final

from bus.native import monotonic_ns
from bus.trace import Hop
from partitions.child import Partition
from partitions.measuring import Load, stamps_of
from partitions.net.frames import ETHERNET_HEADER_BYTES
from partitions.net.nic import Nic

ETHERTYPE: Final = b"\x88\xb5"  # for experiments, by IEEE 802
SECONDS: Final = 0.3
BATCH: Final = 16  # frames of a flow, handed over at a time
_HEAD: Final = struct.Struct("<cQ")  # what it is, and its number
BYTES_MIN: Final = ETHERNET_HEADER_BYTES + _HEAD.size
_HELLO, _EXCHANGED, _FLOWS, _COUNT, _OVER = b"?", b"x", b"f", b"=", b"."
_BROADCAST: Final = b"\xff" * 6
_PATIENCE_S: Final = 60.0
_AGAIN_S: Final = 0.1
_TAKEN_MAX: Final = 1024  # at a time


class _Asker:
    def __init__(self, nic: Nic) -> None:
        self._nic, self._number = nic, 0
        self._other = _BROADCAST
        self._other = self._ask(_HELLO, 0)[6:12]

    def _frame(self, kind: bytes, number: int, size: int = BYTES_MIN) -> bytes:
        head = self._other + self._nic.mac + ETHERTYPE + _HEAD.pack(kind, number)
        return head + bytes(size - len(head))

    def _ask(self, kind: bytes, number: int) -> bytes:
        """Say it until it is answered. TimeoutError: nobody does."""
        until = time.monotonic() + _PATIENCE_S
        while (now := time.monotonic()) < until:
            self._nic.send([self._frame(kind, number)], _PATIENCE_S)
            again = now + _AGAIN_S
            while (left := again - time.monotonic()) > 0:
                for answer in self._nic.receive(_TAKEN_MAX, left):
                    if answer[12:14] == ETHERTYPE and _HEAD.unpack_from(answer, 14)[0] == kind:
                        return answer
        raise TimeoutError(f"the other guest does not answer {kind!r}")

    def exchange(self, size: int, seconds: float, load: Load) -> None:
        nic, now, record, stamp = self._nic, monotonic_ns, load.latency.record, stamps_of(self._nic)
        deadline = now() + int(seconds * 1e9)
        while now() < deadline:
            self._number += 1
            frame = self._frame(_EXCHANGED, self._number, size)
            begun = now()
            if stamp is not None:
                stamp(Hop.CALL)
            nic.send([frame], _PATIENCE_S)
            answers = nic.receive(1, _PATIENCE_S)
            if stamp is not None:
                stamp(Hop.RETURN)
            record(now() - begun)
            load.mismatches += len(answers) != 1 or answers[0][12:] != frame[12:]

    def flow(self, size: int, seconds: float, load: Load) -> int:
        """How many were lost. The load's operations are those that arrived."""
        nic, now, record = self._nic, monotonic_ns, load.latency.record
        frames, sent = [self._frame(_FLOWS, 0, size)] * BATCH, 0
        deadline = now() + int(seconds * 1e9)
        while (begun := now()) < deadline:
            sent += nic.send(frames, _PATIENCE_S)
            record(now() - begun)
        nic.flush(_PATIENCE_S)
        arrived: int = _HEAD.unpack_from(self._ask(_COUNT, 0), 14)[1]
        load.operations = arrived
        return sent - arrived

    def leave(self) -> None:
        self._ask(_OVER, 0)


def name_of(plan: Mapping[str, Any]) -> str:
    return f"{plan['bytes']}-byte frames, {'one way' if plan.get('flow') else 'there and back'}"


def ask(partition: Partition) -> int:
    """args: device, loads (tables: bytes, flow), seconds (of each), receive_bytes and send_bytes (of the buffers)."""
    args = partition.args
    seconds, mismatches = float(args.get("seconds", SECONDS)), 0
    with _open(partition) as nic:
        asker = _Asker(nic)
        for plan in args["loads"]:
            size, lost = max(int(plan["bytes"]), BYTES_MIN), 0
            with partition.measuring(name_of(plan), transfer_bytes=size) as load:
                if plan.get("flow"):
                    lost = asker.flow(size, seconds, load)
                else:
                    asker.exchange(size, seconds, load)
            if lost:
                partition.report("frames_lost", name=name_of(plan), arrived=load.operations, lost=lost)
            mismatches += load.mismatches
        asker.leave()
    return 1 if mismatches else 0


def answer(partition: Partition) -> int:
    """args: device, receive_bytes and send_bytes (of the buffers). Until the asker says that it is over."""
    count, until = 0, time.monotonic() + _PATIENCE_S
    with _open(partition) as nic:
        while time.monotonic() < until:
            for frame in nic.receive(_TAKEN_MAX, _AGAIN_S):
                if frame[12:14] != ETHERTYPE:
                    continue
                kind, _ = _HEAD.unpack_from(frame, 14)
                if kind == _FLOWS:
                    count += 1
                    continue
                body = _HEAD.pack(kind, count) if kind == _COUNT else frame[14:]
                nic.send([frame[6:12] + nic.mac + ETHERTYPE + body], _PATIENCE_S)
                if kind == _COUNT:
                    count = 0
                if kind == _OVER:
                    nic.flush(_PATIENCE_S)
                    return 0
    return 1


def _open(partition: Partition) -> Any:
    sizes = {
        key: int(partition.args[key]) for key in ("receive_bytes", "send_bytes") if key in partition.args
    }
    return partition.open_net(str(partition.args["device"]), **sizes)
