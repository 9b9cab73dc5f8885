"""What `partvisor bench claim` measures: ways between two processes, and ways between two guests.

Between processes, as a microkernel's IPC: a client sends, the server receives and replies, the client goes on.

  send/receive/reply    SOCK_SEQPACKET: the kernel copies the message twice and wakes who waits for it. It stands for
                        an IPC that passes messages by value, as QNX's and MINIX's do. In Python, as our guests are,
                        and in C
  process switch        a futex over shared memory, in C: the kernel does nothing but wake. It stands for an IPC that
                        is no more than a switch from one process to the other, as L4's aims to be
  polled, shared slot   the same two between peers that run: no system call wakes anyone

Between guests: through the root's switch, which copies; by a link, a channel that both map; a link whose doorbells go
through the hypervisor. The switch between peers that run takes a CPU for each guest and two for the root: with fewer
somebody sleeps, and it is left out.
"""

import os
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from runtime.measure.claim_decision import Key, Peers
from runtime.measure.ladder_machine import ASKER, LadderMachine
from runtime.measure.ladder_rows import pair_order
from runtime.measure.reference_programs import ReferencePrograms, reference_programs
from runtime.measure.results import Placement
from runtime.measure.sample import Order, Sample
from runtime.measure.transport import Answer
from runtime.measure.transport_pair import measure_pair
from runtime.measure.transports.sockets import UnixSeqpacketTransport

SIGNAL_BYTES: Final = 32  # the smallest: a message with next to nothing in it
ROOT_THREADS: Final = 2  # of a switch: one a port
PAYLOADS: Final = (64, 4096, 65_536)

SEND_RECEIVE_REPLY: Final = "send/receive/reply"
SEND_RECEIVE_REPLY_C: Final = "send/receive/reply, C"
PROCESS_SWITCH_C: Final = "process switch, C"
POLLED: Final = "polled send/receive/reply"
SHARED_SLOT_C: Final = "shared slot, C"
SWITCH: Final = "through the root's switch"
LINK: Final = "link"
LINK_BY_HYPERVISOR: Final = "link, by the hypervisor"

PROCESS_WAYS: Final = (SEND_RECEIVE_REPLY, SEND_RECEIVE_REPLY_C, PROCESS_SWITCH_C, POLLED, SHARED_SLOT_C)
GUEST_WAYS: Final = (LINK, LINK_BY_HYPERVISOR, SWITCH)
_WOKEN: Final = (Peers.WOKEN_SAME_CPU, Peers.WOKEN_TWO_CPUS)


class PolledSeqpacket(UnixSeqpacketTransport):
    """The same, between peers that never sleep: they ask the kernel again and again."""

    name = "polled-seqpacket"

    def open(self, payload_bytes: int) -> None:
        super().open(payload_bytes)
        self._client.setblocking(False)
        self._server.setblocking(False)

    def serve(self, answer: Answer) -> None:
        receive, send, size = self._server.recv, self._server.send, self._size
        while True:
            try:
                request = receive(size)
            except BlockingIOError:
                continue
            send(answer(request))

    def exchange(self, request: bytes) -> bytes:
        receive, size = self._client.recv, self._size
        self._client.send(request)
        while True:
            try:
                return receive(size)
            except BlockingIOError:
                continue


@dataclass(frozen=True, slots=True)
class Column:
    """One figure of each round."""

    key: Key
    measure: Callable[[float], float]  # seconds -> the median round trip in ns. Raises CommandError


@contextmanager
def columns(cpus: tuple[int, int]) -> Iterator[list[Column]]:
    """All of them, ready to be measured in turns. Raises CommandError: no compiler, or the machine does not boot."""
    with reference_programs(names=("ipc_pingpong",)) as programs, LadderMachine({ASKER}) as machine:
        sizes = (SIGNAL_BYTES, *PAYLOADS)
        found = [*_process_columns(programs, cpus, sizes), *_guest_columns(machine, cpus, sizes)]
        yield sorted(found, key=lambda column: (column.key.payload_bytes, column.key.peers))


def _placed(peers: Peers, cpus: tuple[int, int]) -> tuple[frozenset[int], frozenset[int]]:
    client, server = cpus
    return frozenset({client}), frozenset({client if peers is Peers.WOKEN_SAME_CPU else server})


def _process_columns(
    programs: ReferencePrograms, cpus: tuple[int, int], sizes: tuple[int, ...]
) -> Iterator[Column]:
    in_c: list[tuple[str, str, tuple[Peers, ...]]]
    in_c = [(SEND_RECEIVE_REPLY_C, "seqpacket", _WOKEN), (PROCESS_SWITCH_C, "futex", _WOKEN)]
    in_c += [(SHARED_SLOT_C, "slot", (Peers.RUNNING,))]
    for way, kind, states in in_c:
        for peers in states:
            for size in sizes:
                yield Column(Key(way, peers, size), _program(programs, kind, size, _placed(peers, cpus)))
    in_python: list[tuple[str, Callable[[], UnixSeqpacketTransport], tuple[Peers, ...]]] = [
        (SEND_RECEIVE_REPLY, UnixSeqpacketTransport, _WOKEN),
        (POLLED, PolledSeqpacket, (Peers.RUNNING,)),
    ]
    for way, transport, states in in_python:
        for peers in states:
            for size in sizes:
                yield Column(Key(way, peers, size), _transport(transport, size, _placed(peers, cpus)))


def _program(
    programs: ReferencePrograms, kind: str, size: int, places: tuple[frozenset[int], frozenset[int]]
) -> Callable[[float], float]:
    client, server = (",".join(map(str, sorted(place))) for place in places)

    def measure(seconds: float) -> float:
        return float(programs.run("ipc_pingpong", kind, size, seconds, 0, client, server)["p50_ns"])

    return measure


def _transport(
    make: Callable[[], UnixSeqpacketTransport], size: int, places: tuple[frozenset[int], frozenset[int]]
) -> Callable[[float], float]:
    def measure(seconds: float) -> float:
        return _p50(measure_pair(make, _order(size, seconds, places)))

    return measure


def _order(size: int, seconds: float, places: tuple[frozenset[int], frozenset[int]]) -> Order:
    return Order(
        payload_bytes=size,
        seconds=seconds,
        placement=Placement.SAME_CPU if places[0] == places[1] else Placement.TWO_CPUS,
        client_cpus=places[0],
        server_cpus=places[1],
    )


def _p50(sample: Sample) -> float:
    return float(sample.measured.latency.percentile(50))


def _guest_columns(machine: LadderMachine, cpus: tuple[int, int], sizes: tuple[int, ...]) -> Iterator[Column]:
    spare = os.sched_getaffinity(0) - set(cpus)
    ways: list[tuple[str, str, tuple[Peers, ...]]] = [
        (LINK, "link-direct-block", _WOKEN),
        (LINK_BY_HYPERVISOR, "link-broker-block", _WOKEN),
        (SWITCH, "switch-direct-block", _WOKEN),
        (LINK, "link-direct-spin", (Peers.RUNNING,)),
    ]
    if len(spare) >= ROOT_THREADS:
        ways.append((SWITCH, "switch-direct-adaptive", (Peers.RUNNING,)))
    for way, device, states in ways:
        for peers in states:
            others = spare if (way, peers) == (SWITCH, Peers.RUNNING) else None
            for size in sizes:
                places = _placed(peers, cpus)
                yield Column(Key(way, peers, size), _guests(machine, device, size, places, others))


def _guests(
    machine: LadderMachine,
    device: str,
    size: int,
    places: tuple[frozenset[int], frozenset[int]],
    others: Collection[int] | None,
) -> Callable[[float], float]:
    def measure(seconds: float) -> float:
        return _p50(machine.measure(ASKER, pair_order(device), _order(size, seconds, places), others))

    return measure
