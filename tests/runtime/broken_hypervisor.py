"""The hypervisor's state machine on virtual time, with a guest that has ports, and faults to be armed in it."""

from typing import Any, Final

from runtime.abi import (
    GUEST_PRIVILEGES,
    HvStatus,
    HypercallCode,
    PortType,
    RegisterName,
    Route,
)
from runtime.chaos.faults.catalogue import FAULTS
from runtime.chaos.faults.knobs import Knobs
from runtime.chaos.faults.orders import Counts, Order
from runtime.hypervisor.armed_faults import ArmedFaults
from runtime.hypervisor.machine import RootFailurePolicy
from tests.runtime.hypervisor_world import World
from tests.runtime.plain_synic import take_message

ALWAYS: Final = Knobs()

C = HypercallCode
SINT: Final = 2
PORT, CONNECTION = 7, 4


class Broken:
    """A running child with a port of each kind, connected to the root; and faults in its hypervisor."""

    def __init__(self, policy: RootFailurePolicy = RootFailurePolicy.HALT) -> None:
        self.world = World(memory_pages=1 << 14, on_root_failure=policy)
        self.child = self.world.child(pages=400, privileges=GUEST_PRIVILEGES, name="guest")
        self.world.start(self.child)
        self.world.enable_synic(self.child, SINT)
        for kind, port in ((PortType.MESSAGE, PORT), (PortType.EVENT, PORT + 1)):
            flags = {"base_flag": 0, "flag_count": 8} if kind is PortType.EVENT else {}
            made = {
                "port": port,
                "connection_partition": 1,
                "type": int(kind),
                "sint": SINT,
                "vp": 0,
            } | flags
            self.world.do(1, C.CREATE_PORT, partition=self.child, **made)
            reached = {"connection": CONNECTION + port - PORT, "port_partition": self.child, "port": port}
            self.world.do(1, C.CONNECT_PORT, route=int(Route.BROKER), **reached)
        self._last = 0

    def arm(self, kind: str, target: str = "guest", knobs: Knobs = ALWAYS, **parameters: Any) -> int:
        machine, self._last = self.world.machine, self._last + 1
        settled = FAULTS[kind].settle(parameters)
        order = Order(self._last, kind, target, settled, knobs, seed=7)

        def act() -> None:
            machine.faults = machine.faults or ArmedFaults(machine)
            machine.faults.inject(order)

        self.world.carry_out(self.world.hypervisor.break_on_purpose(act, self.world.now_ns))
        return self._last

    def heal(self, number: int | None = None) -> None:
        faults = self.world.machine.faults
        assert faults is not None
        heal = lambda: faults.heal(number)  # noqa: E731
        self.world.carry_out(self.world.hypervisor.break_on_purpose(heal, self.world.now_ns))
        self.world.check()

    def counts(self, number: int) -> Counts:
        assert self.world.machine.faults is not None
        return self.world.machine.faults.counts()[number]

    def fired(self, number: int) -> int:
        return self.counts(number).fired

    @property
    def is_whole(self) -> bool:
        """The state machine does not ask anybody any more."""
        return self.world.machine.faults is None

    def signal(self, flag: int) -> None:
        self.world.do(1, C.SIGNAL_EVENT, connection=CONNECTION + 1, flag=flag)

    @property
    def lines(self) -> int:
        return self.world.lines[self.child, 0]

    def post(self, payload: bytes) -> HvStatus:
        return self.world.status(1, C.POST_MESSAGE, connection=CONNECTION, type=1, payload=payload)

    def received(self) -> list[bytes]:
        """Every message that the guest gets now; it looks until nothing comes."""
        payloads = []
        while (found := take_message(self.world.vps[self.child, 0][0], SINT)) is not None:
            payloads.append(found[2])
            self.world.do(self.child, C.SET_VP_REGISTERS, vp=0, registers=[[int(RegisterName.EOM), 0]])
        return payloads

    def time(self) -> int:
        """100 ns."""
        names = [int(RegisterName.TIME_REF_COUNT)]
        return int(self.world.do(self.child, C.GET_VP_REGISTERS, vp=0, names=names)["values"][0])
