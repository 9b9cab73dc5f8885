"""Requests to answers: one storvsp session, its disk and its backend, without a channel.

Whatever carries the packets (a ring, a message, a direct call) asks `execute` and sends what it returns.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from bus.memory import PFN_BYTES
from bus.packets import GpaRange, PacketError, decode_gpa_direct_header, page_count
from partitions.storage.backends import BackendError, BlockBackend
from partitions.storage.identity import DiskIdentity
from partitions.storage.protocol import (
    SENSE_AREA_BYTES,
    MalformedPacket,
    NtStatus,
    Packet,
    ScsiRequest,
    SrbStatus,
)
from partitions.storage.queues import ONLY_QUEUE, Queue
from partitions.storage.session import Execute
from partitions.storage.target import (
    Action,
    Data,
    Discard,
    Done,
    Flush,
    Outcome,
    Read,
    ReadParameters,
    Refuse,
    ScsiDisk,
    Write,
    refuse_errno,
    refuse_outcome,
)

MAX_TRANSFER_BYTES: Final = 256 * 1024  # openvmm's; 64 PFNs a packet

Views = Callable[[int, int, bytes, bool], list[memoryview]]
"""(byte offset, byte count, PFNs, written to?) -> the guest's pages; LookupError where there are none."""


class BadPages(Exception):
    """The page list is not one range of mapped pages that covers the transfer; nothing was touched."""


def one_range(extra_header: bytes) -> GpaRange | None:
    """None for an in-band packet. Raises BadPages for anything but one well-formed range."""
    if not extra_header:
        return None
    try:
        ranges = decode_gpa_direct_header(extra_header)
    except PacketError as error:
        raise BadPages(str(error)) from error
    if len(ranges) != 1:
        raise BadPages(f"{len(ranges)} ranges")
    return ranges[0]


@dataclass(slots=True)
class Counters:
    requests: int = 0
    reads: int = 0
    writes: int = 0
    flushes: int = 0
    discards: int = 0
    bytes_read: int = 0
    bytes_written: int = 0
    refused: int = 0  # SRBs that ended in an error of the guest's making or of the medium's
    malformed: int = 0  # packets or page lists that made no sense

    def statistics(self, dropped: int, fast: Mapping[str, int]) -> dict[str, int]:
        """`fast`: what C has served beside us, by the same names."""
        numbers = {name: getattr(self, name) for name in self.__slots__} | {"dropped": dropped}
        for name, value in fast.items():
            numbers[name] += value
        numbers["requests"] += fast.get("reads", 0) + fast.get("writes", 0)
        return numbers


@dataclass(slots=True)  # not frozen: one is made for each request, and that takes a third of the time
class Work:
    """An SRB that was decided upon, and is to be carried out."""

    step: Execute
    action: Action
    pages: GpaRange | None


def _completion(step: Execute, outcome: Outcome, status: NtStatus) -> bytes:
    body = step.request.answer(outcome.srb_status, outcome.scsi_status, outcome.transfer_bytes, outcome.sense)
    return step.packet.completion(status, body)


class Executor:
    """One opening of one channel. One thread."""

    def __init__(
        self,
        backend: BlockBackend,
        views: Views,
        *,
        serial: str,
        max_transfer_bytes: int = MAX_TRANSFER_BYTES,
        saved: Mapping[str, object] | None = None,
        queue: Queue = ONLY_QUEUE,
    ) -> None:
        """`saved`: a predecessor's `session.snapshot()`, to go on where it stopped. Raises SnapshotError."""
        self.backend: Final = backend
        self.counters: Final = Counters()
        self._views = views
        self.target: Final = ScsiDisk(
            DiskIdentity(
                size_bytes=backend.size_bytes,
                serial=serial,
                block_bytes=backend.block_bytes,
                max_transfer_bytes=max_transfer_bytes,
                read_only=backend.read_only,
                can_discard=backend.can_discard,
            )
        )
        self.session: Final = queue.begin(max_transfer_bytes, saved)

    def execute(self, extra_header: bytes, payload: bytes) -> bytes:
        """Carry one packet out; the completion's payload. Never raises for what a guest wrote.

        Args:
            extra_header: what stands between descriptor and payload; empty for an in-band packet.
        """
        begun = self.begin(extra_header, payload)
        return begun if isinstance(begun, bytes) else self.finish(begun, self._perform(begun))

    def begin(self, extra_header: bytes, payload: bytes) -> "bytes | Work":
        """What a packet asks for; or its completion's payload, where nothing is left to be done."""
        self.counters.requests += 1
        try:
            packet = Packet.parse(payload)
        except MalformedPacket:
            self.counters.malformed += 1
            return Packet(0).reply(NtStatus.INVALID_PARAMETER).build()
        step = self.session.receive(packet)
        if not isinstance(step, Execute):
            return step.build()
        try:
            pages = one_range(extra_header)
            return Work(step, self._decide(step.request, pages), pages)
        except BadPages:
            return self._bad_pages(step)

    def _decide(self, request: ScsiRequest, pages: GpaRange | None) -> Action:
        covered = pages.byte_count if pages is not None else 0
        if request.transfer_bytes > covered:
            raise BadPages(f"{request.transfer_bytes} bytes asked for, pages for {covered}")
        action: Action = self.target.decide(request, request.transfer_bytes)
        if isinstance(action, ReadParameters):
            action = self.target.decide_unmap(self._copy_in(pages, action.length))
        return action

    def _perform(self, work: "Work") -> Outcome | Refuse | BadPages:
        try:
            return self._carry_out(work.action, work.pages)
        except (BackendError, BadPages) as error:
            return self.refusal(work, error)

    def refusal(self, work: "Work", error: BackendError | BadPages) -> Refuse | BadPages:
        """For `finish`: what an error that was met on the way is to the guest."""
        if isinstance(error, BadPages):
            return error
        return refuse_errno(error.errno, writing=not isinstance(work.action, Read))

    def finish(self, work: "Work", outcome: Outcome | Refuse | BadPages) -> bytes:
        """The completion's payload."""
        action = outcome if isinstance(outcome, Refuse) else work.action
        if isinstance(outcome, BadPages):
            return self._bad_pages(work.step)
        if isinstance(action, Refuse):
            self.counters.refused += 1
            sense_bytes = min(work.step.request.sense_length, SENSE_AREA_BYTES)
            return _completion(work.step, refuse_outcome(action, sense_bytes), NtStatus.SUCCESS)
        assert not isinstance(outcome, Refuse)
        return _completion(work.step, outcome, NtStatus.SUCCESS)

    def _bad_pages(self, step: Execute) -> bytes:
        self.counters.malformed += 1
        return _completion(step, Outcome(SrbStatus.INVALID_REQUEST), NtStatus.INVALID_PARAMETER)

    def _carry_out(self, action: Action, pages: GpaRange | None) -> Outcome:
        """Raises BackendError, BadPages."""
        match action:
            case Read(offset, length):
                self.backend.readv(self.views_for(pages, length, write=True), offset)
            case Write(offset, length, durable):
                self.backend.writev(self.views_for(pages, length, write=False), offset)
                if durable:
                    self.backend.flush()
            case Flush():
                self.backend.flush()
            case Discard(ranges):
                for offset, length in ranges:
                    self.backend.discard(offset, length)
        return self.carried_out(action, pages)

    def carried_out(self, action: Action, pages: GpaRange | None) -> Outcome:
        """Its outcome, once the backend has done its part, if it had any. Raises BadPages."""
        counters = self.counters
        match action:
            case Read(_, length):
                counters.reads += 1
                counters.bytes_read += length
                return Outcome(transfer_bytes=length)
            case Write(_, length):
                counters.writes += 1
                counters.bytes_written += length
                return Outcome(transfer_bytes=length)
            case Flush():
                counters.flushes += 1
            case Discard():
                counters.discards += 1
            case Data(payload):
                self._copy_out(pages, payload)
                return Outcome(transfer_bytes=len(payload))
            case Done() | Refuse() | ReadParameters():
                pass
        return Outcome()

    def views_for(self, pages: GpaRange | None, length: int, *, write: bool) -> list[memoryview]:
        """The guest's pages of a transfer. BadPages: they are not there."""
        if length == 0:
            return []
        if pages is None or length > pages.byte_count:
            raise BadPages("the transfer is larger than its pages")
        needed = page_count(pages.byte_offset, length) * PFN_BYTES
        try:
            return self._views(pages.byte_offset, length, pages.pfns[:needed], write)
        except LookupError as error:
            raise BadPages(str(error)) from error

    def _copy_in(self, pages: GpaRange | None, length: int) -> bytes:
        return b"".join(self.views_for(pages, length, write=False))

    def _copy_out(self, pages: GpaRange | None, payload: bytes) -> None:
        done = 0
        for view in self.views_for(pages, len(payload), write=True):
            view[:] = payload[done : done + view.nbytes]
            done += view.nbytes
