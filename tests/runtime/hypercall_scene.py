"""A small machine on which every hypercall can succeed, and every status of it can be brought about.

    1 root
    +- p   every privilege, running; SINT 2 of VP 0 is on
    |  +- c   active, not started
    |  |  +- d  active
    |  +- u   uninitialized
    +- s   active, running, not p's relation

Ports: p's event port 5 (4 flags) and message port 6, and p's message port 7, unconnected; the root connects to 5 and
6 by the same ids, and may connect to 7. p has its own slot of 4 pages at 0x100, c one of 2 pages at 0x200.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from runtime.abi import ALL_PRIVILEGES, HvStatus, HypercallCode, MapFlags, PortType
from tests.runtime.hypervisor_world import World

_C = HypercallCode
READ_WRITE = int(MapFlags.READ | MapFlags.WRITE)
NEW = READ_WRITE | int(MapFlags.ZEROED)
SINT = 2


class _Built(World):
    """Checks itself once it is built, and not at each step on the way: it is built for every case."""

    built = False

    def check(self) -> None:
        if self.built:
            super().check()


class Scene:
    def __init__(self, code: HypercallCode) -> None:
        self.code = code
        self.w = _Built(1 << 15)
        w = self.w
        self.p = w.child(pages=2000, privileges=ALL_PRIVILEGES)
        self.c = w.child(self.p, 400, ALL_PRIVILEGES)
        self.d = w.child(self.c, 40)
        self.u: int = w.do(self.p, _C.CREATE_PARTITION)["partition"]
        self.s = w.child(pages=100, privileges=ALL_PRIVILEGES)
        w.start(self.p)
        w.start(self.s)
        w.enable_synic(self.p, SINT)
        own = {"partition": self.p, "sint": SINT, "vp": 0, "connection_partition": 1}
        w.do(1, _C.CREATE_PORT, **own, port=5, type=int(PortType.EVENT), base_flag=8, flag_count=4)
        w.do(1, _C.CREATE_PORT, **own, port=6, type=int(PortType.MESSAGE))
        w.do(1, _C.CREATE_PORT, **own, port=7, type=int(PortType.MESSAGE))
        w.do(1, _C.CONNECT_PORT, connection=5, port_partition=self.p, port=5)
        w.do(1, _C.CONNECT_PORT, connection=6, port_partition=self.p, port=6)
        w.do(self.p, _C.MAP_GPA_PAGES, gpfn=0x100, pages=4, flags=NEW)
        w.do(self.p, _C.MAP_GPA_PAGES, partition=self.c, gpfn=0x200, pages=2, flags=NEW)
        w.built = True

    def ask(self, caller: int, files: int = 0, **args: Any) -> HvStatus:
        """The call in question; a refusal is checked to have changed nothing."""
        return self.w.status(caller, self.code, files, **args)

    def asked(self, caller: int, **args: Any) -> Any:
        """The values of a success."""
        return self.w.do(caller, self.code, **args)

    def after(self, caller: int, code: HypercallCode, **args: Any) -> Scene:
        """Something that comes first."""
        self.w.do(caller, code, **args)
        return self

    def poor(self, partition: int, left: int = 0) -> Scene:
        """Its pool is empty but for so many pages."""
        pool = self.w.machine.partitions[partition].pool
        taken = pool.available - left
        pool.available -= taken
        # Its parent takes them; the root's go to a child, since the machine's pages are conserved.
        parent = self.w.machine.partitions[partition].parent
        self.w.machine.partitions[self.s if parent is None else parent].pool.available += taken
        return self

    def dead(self, partition: int, parent: int) -> Scene:
        """Finalized."""
        self.w.do(parent, _C.FINALIZE_PARTITION, partition=partition)
        self.w.bury()
        return self

    def silent(self, partition: int, parent: int) -> Scene:
        """Its SynIC is off."""
        return self.after(parent, _C.SET_VP_REGISTERS, partition=partition, vp=0, registers=[[0xA0010, 0]])

    def times(self, count: int, caller: int, code: HypercallCode, **args: Any) -> Scene:
        for _ in range(count):
            self.w.do(caller, code, **args)
        return self


Case = Callable[[Scene], HvStatus]
Cases = dict[HypercallCode, dict[HvStatus, Case]]
