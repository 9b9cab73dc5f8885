"""The ladder's rungs: every way to talk that is measured, and those that are not there yet."""

import functools
import importlib.util
from base64 import b16decode
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from bus.native import Histogram
from runtime.config import SignalRoute, WaitingKind
from runtime.exits import CommandError
from runtime.measure.exchanges import Measured
from runtime.measure.ladder_machine import DEPTHS, DIRECT, LOAD, LadderMachine, echo_name
from runtime.measure.process_usage import Usage
from runtime.measure.reference_programs import ReferencePrograms
from runtime.measure.sample import Contestant, Order, Sample, SampleFailed
from runtime.measure.transport import Impossible, NotInstalled, Transport
from runtime.measure.transport_pair import TransportRow
from runtime.measure.transports.iceoryx import IceoryxTransport
from runtime.measure.transports.queues import (
    MessageQueueTransport,
    MultiprocessingPipeTransport,
    MultiprocessingQueueTransport,
)
from runtime.measure.transports.rings import RingExchangeTransport, RingTransport
from runtime.measure.transports.shared_memory import (
    EventfdTransport,
    FutexTransport,
    PythonSpinRingTransport,
)
from runtime.measure.transports.sockets import (
    PipeTransport,
    TcpTransport,
    UnixSeqpacketTransport,
    UnixStreamTransport,
)
from runtime.measure.transports.zeromq import ZmqInprocTransport, ZmqIpcTransport, ZmqTcpTransport

LIMIT: Final = "c-slot"  # the rung that all others are divided by
MESSAGE_BYTES_MAX: Final = 240  # of a SynIC message
_PARTVISOR: Final = "partvisor"
_C_WAYS: Final = {
    LIMIT: ("slot", WaitingKind.SPIN),
    "c-futex": ("futex", WaitingKind.BLOCK),
    "c-eventfd": ("eventfd", WaitingKind.BLOCK),
    "c-pipe": ("pipe", WaitingKind.BLOCK),
    "c-unix-seqpacket": ("seqpacket", WaitingKind.BLOCK),
}
PYTHON_PEERS: Final[tuple[type[Transport], ...]] = (
    PythonSpinRingTransport,
    FutexTransport,
    EventfdTransport,
    PipeTransport,
    UnixStreamTransport,
    UnixSeqpacketTransport,
    TcpTransport,
    MessageQueueTransport,
    MultiprocessingPipeTransport,
    MultiprocessingQueueTransport,
    ZmqInprocTransport,
    ZmqIpcTransport,
    ZmqTcpTransport,
    IceoryxTransport,
)
NOT_THERE_YET: Final = {
    "microkernel": "no architecture with a server that is reached by send, receive and reply",
    "hosted": "no architecture whose VMM passes requests on to a host process",
    "guest-to-guest-switch": "no network, so no switch in the root that two guests share",
    "guest-to-guest-direct": "no channel between two guests",
}


@dataclass(frozen=True, slots=True)
class CRow:
    """A small C program, compiled for this run."""

    programs: ReferencePrograms
    name: str
    kind: str
    waiting: WaitingKind
    group: str = "C"
    fixed_payload: int | None = None

    def measure(self, order: Order) -> Sample:
        try:
            answer = self.programs.run(
                "ipc_pingpong",
                self.kind,
                order.payload_bytes,
                order.seconds,
                order.rate_per_s or 0,
                ",".join(map(str, sorted(order.client_cpus))),
                ",".join(map(str, sorted(order.server_cpus))),
            )
        except CommandError as error:
            raise SampleFailed(str(error)) from error
        latency = Histogram.unpack(b16decode(answer["latency"], casefold=True))
        measured = Measured(latency, answer["exchanges"], answer["seconds"])
        return Sample(measured, Usage(**answer["client"]), Usage(**answer["server"]))


@dataclass(frozen=True, slots=True)
class MachineRow:
    """Something that a guest does in a booted machine."""

    machine: LadderMachine
    guest: str
    what: Mapping[str, Any]
    name: str
    waiting: WaitingKind
    group: str = _PARTVISOR
    fixed_payload: int | None = None
    payload_bytes_min: int = 0
    payload_bytes_max: int = 1 << 20
    open_loop: bool = True
    needs: str = ""  # a Python package

    def measure(self, order: Order) -> Sample:
        if self.needs and importlib.util.find_spec(self.needs) is None:
            raise NotInstalled("pip install 'partvisor[emulation]'")
        if not self.payload_bytes_min <= order.payload_bytes <= self.payload_bytes_max:
            raise Impossible(f"it carries {self.payload_bytes_min} to {self.payload_bytes_max} bytes")
        if order.rate_per_s is not None and not self.open_loop:
            raise Impossible("machine code runs in a loop of its own: no time can be set for an access")
        return self.machine.measure(self.guest, self.what, order)


def c_row(programs: ReferencePrograms, name: str) -> CRow:
    kind, waiting = _C_WAYS[name]
    return CRow(programs, name, kind, waiting)


def transport_rows() -> list[TransportRow]:
    rows = [TransportRow.of_class(peer) for peer in PYTHON_PEERS]
    return rows + [
        TransportRow(functools.partial(kind, waiting), kind.name, kind.group, waiting)
        for waiting in WaitingKind
        for kind in (RingTransport, RingExchangeTransport)
    ]


def machine_rows(machine: LadderMachine) -> list[MachineRow]:
    rows = []
    for route in SignalRoute:
        for waiting in WaitingKind:
            device = echo_name(route, waiting)
            for suffix, pages in (("", False), ("-pages", True)):
                what = {"what": "echo", "device": device, "pages": pages}
                rows.append(MachineRow(machine, LOAD, what, f"vmbus-{route}{suffix}", waiting))
    for depth, guest in DEPTHS.items():
        name = "disk" if depth == 1 else f"disk-depth-{depth}"
        what = {"what": "disk", "device": "disk0"}
        rows.append(MachineRow(machine, guest, what, name, WaitingKind.ADAPTIVE, payload_bytes_min=512))
    block = WaitingKind.BLOCK
    rows += [
        MachineRow(machine, LOAD, {"what": "hypercall"}, "hypercall", block, fixed_payload=0),
        MachineRow(
            machine,
            DEPTHS[2],
            {"what": "message"},
            "post-message",
            block,
            payload_bytes_max=MESSAGE_BYTES_MAX,
        ),
        MachineRow(machine, LOAD, {"what": "port"}, "port-io", block, fixed_payload=1),
        MachineRow(machine, DIRECT, {"what": "port"}, "port-io-direct", block, fixed_payload=1),
        MachineRow(
            machine,
            LOAD,
            {"what": "machine code"},
            "port-io-machine-code",
            block,
            fixed_payload=1,
            open_loop=False,
            needs="unicorn",
        ),
    ]
    return rows


def all_rows(programs: ReferencePrograms, machine: LadderMachine) -> list[Contestant]:
    """In the order of the ladder: C first, ours last."""
    return [
        *(c_row(programs, name) for name in _C_WAYS),
        *transport_rows(),
        *machine_rows(machine),
    ]
