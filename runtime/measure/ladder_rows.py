"""The ladder's rungs: every way to talk that is measured."""

import contextlib
import functools
import importlib.util
from base64 import b16decode
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from bus.native import Histogram
from runtime.config.architecture import Architecture
from runtime.config.model import SignalRoute, WaitingKind
from runtime.exits import CommandError
from runtime.measure.exchanges import Measured
from runtime.measure.ladder_machine import (
    ANSWERER,
    ASKER,
    DEPTHS,
    DIRECT,
    DISK,
    LOAD,
    PAIR_DEVICES,
    WAITINGS,
    LadderMachine,
    echo_name,
)
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
# Families of our own rows: headings and colours.
VMBUS: Final = "partvisor VMBus"
DISKS: Final = "partvisor disks"
CALLS: Final = "partvisor calls"
PAIRS: Final = "partvisor guests"
SERVERS: Final = "partvisor servers"
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
    group: str
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
            for suffix, by in (("", "ring"), ("-pages", "pages")):
                what = {"what": "echo", "device": device, "by": by}
                rows.append(MachineRow(machine, LOAD, what, f"vmbus-{route}{suffix}", waiting, VMBUS))
    for depth, guest in DEPTHS.items():
        name = "disk" if depth == 1 else f"disk-depth-{depth}"
        what = {"what": "disk", "device": DISK}
        rows.append(
            MachineRow(machine, guest, what, name, WaitingKind.ADAPTIVE, DISKS, payload_bytes_min=512)
        )
    block = WaitingKind.BLOCK
    rows += [
        MachineRow(machine, LOAD, {"what": "hypercall"}, "hypercall", block, CALLS, fixed_payload=0),
        MachineRow(
            machine,
            DEPTHS[2],
            {"what": "message"},
            "post-message",
            block,
            CALLS,
            payload_bytes_max=MESSAGE_BYTES_MAX,
        ),
        MachineRow(machine, LOAD, {"what": "port"}, "port-io", block, CALLS, fixed_payload=1),
        MachineRow(machine, DIRECT, {"what": "port"}, "port-io-direct", block, CALLS, fixed_payload=1),
        MachineRow(
            machine,
            LOAD,
            {"what": "machine code"},
            "port-io-machine-code",
            block,
            CALLS,
            fixed_payload=1,
            open_loop=False,
            needs="unicorn",
        ),
    ]
    return rows + [
        MachineRow(machine, ASKER, pair_order(device), _pair_name(kind, route), waiting, PAIRS)
        for device, (kind, route, waiting) in PAIR_DEVICES.items()
    ]


def pair_order(device: str) -> dict[str, str]:
    """What the pair of guests is told, to talk over that device."""
    return {"what": "pair", "device": device, "partner": ANSWERER}


def _pair_name(kind: str, route: SignalRoute) -> str:
    if kind == "switch":
        return "guest-to-guest-switch"
    return "guest-to-guest-direct" if route is SignalRoute.DIRECT else "guest-to-guest-routed"


def architecture_rows(architecture: Architecture, machine: LadderMachine) -> list[MachineRow]:
    """A device that is not the root's: a process of its own has it."""
    return [
        MachineRow(
            machine,
            LOAD,
            {"what": "echo", "device": echo_name(SignalRoute.DIRECT, waiting), "by": "either"},
            architecture.value,
            waiting,
            SERVERS,
        )
        for waiting in WAITINGS[architecture]
    ]


class Machines(contextlib.ExitStack):
    """Every machine of the ladder. None is booted before one of its rows is measured; afterwards nothing is left."""

    def __init__(self) -> None:
        super().__init__()
        self.usual = self.enter_context(LadderMachine())
        self.elsewhere = {each: self.enter_context(LadderMachine(architecture=each)) for each in WAITINGS}

    def rows(self) -> list[MachineRow]:
        return [
            *machine_rows(self.usual),
            *(row for each, machine in self.elsewhere.items() for row in architecture_rows(each, machine)),
        ]

    def need(self, rows: Iterable[MachineRow]) -> None:
        """Just the guests of these rows."""
        wanted = list(rows)
        for machine in (self.usual, *self.elsewhere.values()):
            machine.need({row.guest for row in wanted if row.machine is machine})


def all_rows(programs: ReferencePrograms, machines: Machines) -> list[Contestant]:
    """In the order of the ladder: C first, ours last."""
    return [*(c_row(programs, name) for name in _C_WAYS), *transport_rows(), *machines.rows()]
