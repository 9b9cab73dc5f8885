"""A guest that sends a device numbered messages, many in flight, and notes each answer as it comes.

For devices that answer each request with its own bytes: of kind "echo", or a driver of your own that does. What was
sent and what came is in a file that survives whoever is killed (runtime.chaos.sequence); whether every answer belongs
to a request, came once, in order and with its bytes intact, is decided afterwards.

Over rings the guest takes completions as they stand in the ring, also those that a client would drop: answers to
nothing, and answers that come twice. Where a device is called, there is one exchange at a time, and nothing to reorder.

    [[partition]]
    program = "partitions.guests.sequenced:main"
    args = { device = "echo0", seed = 1, seconds = 10 }
    [[partition.file]]
    name = "sequence"          # must be there and be empty
    mode = "read-write"

args: device; seed; depth (messages in flight); bytes_max (of one); messages or seconds; pause_ms (between bursts);
patience_s (how long it waits for an answer); sequence (the file's name).
"""

import random
import signal
import time
from collections.abc import Callable
from typing import Final

from bus.native import Channel, RingClosed, RingFull
from bus.packets import PacketType
from partitions.child import Partition
from partitions.custom.wire import CUSTOM_INTERFACE, CustomClosedError, CustomError
from runtime.chaos.sequence import Ending, SequenceWriter

BYTES_MAX: Final = 1024
DEPTH: Final = 16
MESSAGES: Final = 200_000
PATIENCE_S: Final = 30.0
PROGRESS_S: Final = 0.25  # between two reports, in the long run
PROGRESS_S_MIN: Final = 0.01  # at first: somebody may wait for the load to run
_NUMBER_BYTES: Final = 8
_BATCH: Final = 64
_LOOK_NS: Final = 20_000_000  # how long it waits for answers before it looks whether it is to end
_MARK_SHIFT: Final = 11  # of a completion's flags: a refusal has a mark
_NOT_RECORDABLE: Final = (1 << 64) - 1  # what is no completion at all


class SequencedLoad:
    """Messages and their answers. One thread."""

    def __init__(self, partition: Partition, writer: SequenceWriter) -> None:
        args = partition.args
        self._writer, self._report = writer, partition.report
        self._random = random.Random(int(args.get("seed", 1)))
        self._bytes_max, self._depth = int(args.get("bytes_max", BYTES_MAX)), int(args.get("depth", DEPTH))
        self._pause_s = float(args.get("pause_ms", 1)) / 1000
        self._patience_s = float(args.get("patience_s", PATIENCE_S))
        self._ends = time.monotonic() + float(args.get("seconds", "inf"))
        self._next_report, self._progress_s = 0.0, PROGRESS_S_MIN
        self._in_flight: set[int] = set()
        self.answered = 0
        self.enough = False

    @property
    def _goes_on(self) -> bool:
        return not self.enough and self._writer.room > 0 and time.monotonic() < self._ends

    def _payload(self) -> bytes:
        """It begins with 0, as what an echo returns as it is."""
        return bytes(_NUMBER_BYTES) + self._random.randbytes(self._random.randrange(self._bytes_max))

    def _took(self, number: int, payload: bytes, is_refusal: bool) -> None:
        self._writer.receive(number, payload, is_refusal)
        if number in self._in_flight:
            self._in_flight.discard(number)
            self.answered += 1
        if (now := time.monotonic()) >= self._next_report:
            self._next_report = now + self._progress_s
            self._progress_s = min(2 * self._progress_s, PROGRESS_S)
            self._report("sequenced_progress", operations=self.answered)

    def over_rings(self, channel: Channel) -> Ending:
        """The channel's own completions, in their order."""
        channel.exact_lengths()
        last = time.monotonic()
        waits: tuple[int, bytes] | None = None  # noted, and there was no room in the ring
        while self._goes_on or self._in_flight:
            burst = self._random.randint(1, self._depth)
            while waits or (self._goes_on and len(self._in_flight) < burst):
                number, payload = waits or self._noted()
                try:
                    channel.send(payload, number, True)
                except RingFull:
                    waits = number, payload
                    break
                waits = None
            packets = channel.receive_batch(_BATCH, _LOOK_NS)
            for kind, flags, number, _, payload in packets:
                known = number if kind == PacketType.COMPLETION else _NOT_RECORDABLE
                self._took(known, payload, bool(flags >> _MARK_SHIFT))
            channel.release()
            now = time.monotonic()
            if packets:
                last = now
            elif now - last > self._patience_s:
                return Ending.GAVE_UP
            if self._pause_s:
                time.sleep(self._pause_s)
        return Ending.FINISHED

    def _noted(self) -> tuple[int, bytes]:
        payload = self._payload()
        number = self._writer.send(payload)
        self._in_flight.add(number)
        return number, payload

    def by_calls(self, exchange: Callable[[bytes], bytes]) -> Ending:
        while self._goes_on:
            number, payload = self._noted()
            try:
                self._took(number, exchange(payload), False)
            except CustomClosedError:
                raise
            except CustomError:
                self._took(number, b"", True)
            if self._pause_s:
                time.sleep(self._pause_s)
        return Ending.FINISHED


def main(partition: Partition) -> int:
    """1: an answer did not come, or the channel was taken away. SIGTERM: enough."""
    args, device = partition.args, str(partition.args["device"])
    writer = SequenceWriter(
        partition.files[str(args.get("sequence", "sequence"))],
        seed=int(args.get("seed", 1)),
        messages_max=int(args.get("messages", MESSAGES)),
    )
    load = SequencedLoad(partition, writer)

    def enough(*_: object) -> None:
        load.enough = True

    signal.signal(signal.SIGTERM, enough)
    try:
        if partition.devices[device].get("messages"):
            with partition.open_custom(device) as custom:
                ending = load.by_calls(custom.exchange)
        else:
            with partition.open_channel(device, CUSTOM_INTERFACE, 0) as opened:
                ending = load.over_rings(opened.channel)
    except (RingClosed, CustomClosedError):
        ending = Ending.CLOSED
    writer.end(ending)
    partition.report("sequenced", operations=load.answered, ending=ending.name.lower())
    return int(ending is not Ending.FINISHED)
