"""Defects that can be planted into the storage server, one at a time, to see that they are found.

Each is a mistake that somebody could make, and is made in the real server: a test plants the same class into a root of
real processes.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from bus.packets import PacketFlags, PacketType
from bus.seam import Step
from partitions.storage.protocol import NtStatus, Packet, ScsiRequest, SrbStatus
from partitions.storage.vsp import StorageVsp

_EXECUTING_AT: Final = 8  # in a channel's record
_WRITES: Final = (0x2A, 0x8A)  # WRITE(10), WRITE(16)


class ReleasesFirst(StorageVsp):
    """A write leaves the ring before its answer is published: who dies in between has lost it."""

    def _serve(self, packet: tuple[int, int, int, bytes, bytes]) -> None:
        packet_type, flags, identity, extra, payload = packet
        if not _is_write(packet_type, payload):
            super()._serve(packet)
            return
        self._seam.passing(Step.TAKE)
        self._hold()
        self._record[_EXECUTING_AT] = 1
        answer = self._answer(packet_type, flags, extra, payload)
        self._channel.release()
        self._seam.passing(Step.EXECUTE)
        if answer is not None:
            self._channel.send_completion(answer, identity)
        self._record[_EXECUTING_AT] = 0
        self.let_go()


class AnswersFirst(StorageVsp):
    """A write is acknowledged, released, and then done."""

    def _serve(self, packet: tuple[int, int, int, bytes, bytes]) -> None:
        packet_type, flags, identity, extra, payload = packet
        if not _is_write(packet_type, payload):
            super()._serve(packet)
            return
        self._seam.passing(Step.TAKE)
        self._hold()
        if flags & PacketFlags.COMPLETION_REQUESTED:
            self._channel.send_completion(_success(payload), identity)
        self._channel.release()
        self._answer(packet_type, flags, extra, payload)
        self._seam.passing(Step.EXECUTE)
        self.let_go()


class DropsReplayed(StorageVsp):
    """A successor takes what its predecessor was executing for done."""

    def replay(self) -> None:
        if self._record[_EXECUTING_AT] and self._channel.receive_batch(1, 0):
            self._channel.release()
        super().replay()


def _is_write(packet_type: int, payload: bytes) -> bool:
    if packet_type != PacketType.GPA_DIRECT:
        return False
    request = ScsiRequest.parse(Packet.parse(payload).body)
    return request.cdb_or_sense[0] in _WRITES


def _success(payload: bytes) -> bytes:
    packet = Packet.parse(payload)
    request = ScsiRequest.parse(packet.body)
    return packet.completion(
        NtStatus.SUCCESS, request.answer(SrbStatus.SUCCESS, 0, request.transfer_bytes, b"")
    )


DEFECTS: Final[Mapping[str, type[StorageVsp]]] = MappingProxyType(
    {
        "releases-first": ReleasesFirst,
        "answers-first": AnswersFirst,
        "drops-replayed": DropsReplayed,
    }
)
