"""Hostile hypercalls against the state machine: any call, any arguments, from any partition but the root.

Half of the arguments make some sense, since nonsense alone never gets past the first check. One seed, one run.
"""

from __future__ import annotations

import pickle
import random
from collections import Counter
from typing import Any, Final

from runtime.abi import (
    ALL_PRIVILEGES,
    CREATE_PARTITION_PAGES,
    GUEST_PRIVILEGES,
    PAGE_BYTES,
    PARTITION_SELF,
    HvStatus,
    HypercallCode,
    MapFlags,
    PartitionProperty,
    PortType,
    RegisterName,
)
from runtime.hypercalls.arguments import ARGUMENTS, Argument, Kind
from runtime.hypervisor.partition import Partition
from runtime.hypervisor.program import Process
from tests.runtime.hypervisor_world import World

_C = HypercallCode
NEW: Final = int(MapFlags.READ | MapFlags.WRITE | MapFlags.ZEROED)
EXTREMES: Final = (
    0,
    1,
    2,
    15,
    16,
    63,
    64,
    255,
    2**16 - 1,
    2**24,
    2**32 - 2,
    2**32 - 1,
    2**40,
    2**63,
    2**64 - 1,
)
JUNK: Final[tuple[Any, ...]] = (
    None,
    True,
    -1,
    2**64,
    1.5,
    "x",
    b"\xff",
    [],
    {},
    [[1, 2, 3]],
    {"a": [None]},
    [2**70],
    "\ud800",
)
SINT: Final = 2
AGAIN_BEGINS: Final = 0.02
AGAIN_LIKELY: Final = 0.95
ROW_BYTES_MAX: Final = 256  # of a slot, in our own accounting: less than a page
_DEADLY: Final = (_C.FINALIZE_PARTITION, _C.DELETE_VP, _C.DELETE_PORT, _C.DISCONNECT_PORT, _C.UNMAP_GPA_PAGES)
# Of a partition, what nobody outside its parent may change, whatever it shares with others.
_AUTHORITY: Final = (
    "parent",
    "depth",
    "state",
    "privileges",
    "properties",
    "program",
    "files",
    "process",
    "pid",
    "exit_status",
    "failure",
    "suspended",
    "frozen_ns",
    "created_ns",
    "address_bits",
    "heartbeat_within_ms",
    "heartbeat_due_ns",
    "children",
    "guest",
)


class Hostility:
    def __init__(self, seed: int) -> None:
        self.rng: Final = random.Random(seed)
        self.statuses: Counter[HvStatus] = Counter()
        self.succeeded: Counter[HypercallCode] = Counter()
        self._build()

    def _build(self) -> None:
        """Two branches that talk to each other and to the root, and a bystander that talks to the root alone."""
        self.known: dict[int, bytes] = {}  # as the last step left it
        self.again: tuple[tuple[object, object, int], int] | None = None  # the last call, and by whom
        self.below: list[int] = []  # the caller and all below it
        w = self.w = World(1 << 14)
        self.a = w.child(pages=600, privileges=ALL_PRIVILEGES, name="a")
        self.b = w.child(pages=200, privileges=ALL_PRIVILEGES, name="b")
        self.bystander = w.child(pages=100, privileges=GUEST_PRIVILEGES, name="bystander")
        self.inner = w.child(self.a, 120, ALL_PRIVILEGES, name="inner")
        self.guest = w.child(self.a, 60, GUEST_PRIVILEGES, name="guest")
        for child, parent in (
            (self.a, 1),
            (self.b, 1),
            (self.bystander, 1),
            (self.inner, self.a),
            (self.guest, self.a),
        ):
            w.start(child, parent)
        for each in (1, self.a, self.b, self.bystander, self.inner, self.guest):
            w.enable_synic(each, SINT)
        for number, (owner, sender) in enumerate(
            (
                (1, self.bystander),
                (self.bystander, 1),
                (1, self.a),
                (self.a, 1),
                (self.a, self.inner),
                (self.b, self.a),
            )
        ):
            self._link(10 + 2 * number, owner, sender)
        for each in (1, self.a, self.b, self.bystander, self.inner):
            new = {"gpfn": 0x100, "pages": 2, "flags": NEW}
            w.do(1, _C.MAP_GPA_PAGES, **({} if each == 1 else {"partition": each}), **new)
        w.do(
            1,
            _C.MAP_GPA_PAGES,
            gpfn=0x300,
            pages=1,
            flags=1,
            source_partition=self.a,
            source_gpfn=0x100,
        )

    def _link(self, number: int, owner: int, sender: int) -> None:
        for port, kind, flags in ((number, PortType.MESSAGE, 0), (number + 1, PortType.EVENT, 4)):
            self.w.do(
                1,
                _C.CREATE_PORT,
                partition=owner,
                port=port,
                connection_partition=sender,
                type=int(kind),
                sint=SINT,
                vp=0,
                flag_count=flags,
                base_flag=8 * (port % 16) if flags else 0,
            )
            self.w.do(1, _C.CONNECT_PORT, partition=sender, connection=port, port_partition=owner, port=port)

    # -- calls that nearly make sense ----------------------------------------------------------------------

    def _value(self, entry: Argument) -> Any:
        rng = self.rng
        dice = rng.random()
        if dice < 0.01:
            return rng.choice(JUNK)
        if entry.kind is Kind.UINT:
            return rng.choice(EXTREMES) if dice < 0.06 else self._number(entry.name)
        if entry.kind is Kind.BYTES:
            return rng.randbytes(rng.choice((0, 1, 8, 16, 17, 240, 241)))
        if entry.kind is Kind.UINTS:
            return [self._number(entry.name) for _ in range(rng.choice((0, 1, 1, 3, 65)))]
        if entry.kind is Kind.PAIRS:
            first, second = ("gpfn", "gpfn") if entry.name == "pages" else ("registers", "value")
            return [[self._number(first), self._number(second)] for _ in range(rng.choice((0, 1, 1, 3, 65)))]
        return {
            "module": "a.b",
            "name": rng.choice(("x", "bystander", "a", "../x")),
            "args": rng.choice((*JUNK, *3 * ({},))),
        }

    def _number(self, name: str) -> int:
        rng, partitions = self.rng, self.w.machine.partitions
        match name:
            case "partition" | "source_partition" | "connection_partition" | "port_partition" | "device":
                return rng.choice([*partitions, PARTITION_SELF, 99, *4 * self.below, *4 * self.below[-1:]])
            case "gpfn" | "source_gpfn":
                return rng.choice((0x100, 0x100, 0x101, 0x200, 0x300, 0x400, rng.randrange(0x800)))
            case "gpa":
                return self._number("gpfn") * PAGE_BYTES + rng.randrange(PAGE_BYTES)
            case "pages":
                return rng.choice((0, 1, 1, 2, 2, 3, 10, 40))
            case "property":
                return int(rng.choice([*PartitionProperty, *3 * (PartitionProperty.PROGRAM, 0, 1)]))
            case "names" | "registers":
                return int(rng.choice(list(RegisterName))) + int(rng.choice((0, 0, 0, 1, 7)))
            case "port" | "connection":
                below = [partitions[each] for each in self.below]
                known = [number for each in below for number in (*each.ports, *each.connections)]
                return rng.choice([*known, 10 + rng.randrange(14), rng.randrange(40), 0x60])
            case "flags":
                return rng.choice((0, 1, 3, NEW, NEW, 0x8000))
            case "value":
                return rng.choice(
                    (0, 1, 1, 16, 100, int(GUEST_PRIVILEGES), int(ALL_PRIVILEGES), 2**32, 2**56)
                )
            case "type":
                return rng.choice((0, 1, 1, 2, 2, 5, 0x11, 0x10001, 0x10002))
            case "vector":
                return rng.choice((3, 0x40, 0x41, 300))
            case "sint":
                return rng.choice((SINT, SINT, 0, 3, 16))
            case "size":
                return rng.choice((1, 2, 4, 8, 16, 3))
            case "vp" | "apic_ids" | "flag" | "flag_count" | "base_flag" | "domain" | "lp" | "index":
                return rng.choice((0, 0, 0, 1, 1, 2, 7))
        return rng.choice((0, 1, 1, 2, 3, 16, 64))

    def _call(self) -> tuple[object, object, int]:
        rng = self.rng
        if rng.random() < 0.03:
            return rng.choice((*JUNK, *EXTREMES, 0x52, 0x8F00 + rng.randrange(32))), rng.choice(JUNK), 0
        code = rng.choice(list(HypercallCode))
        if code in _DEADLY and rng.random() < 0.9:
            code = rng.choice(list(HypercallCode))
        args = {
            entry.name: self._value(entry)
            for entry in ARGUMENTS[code]
            if rng.random() < (0.995 if entry.required else 0.4)
        }
        if "source_partition" in args and rng.random() < 0.8:
            args.setdefault("source_gpfn", self._number("gpfn"))
        if code is _C.MAP_SPARSE_GPA_PAGES:
            args.pop("source_gpfn", None)
        if rng.random() < 0.02:
            args[rng.choice(("x", "vtl", "flags", "partition"))] = rng.choice(EXTREMES)
        return int(code), args, rng.choice((0,) * 40 + (1,))

    # -- what must hold ------------------------------------------------------------------------------------

    def step(self) -> None:
        w, machine = self.w, self.w.machine
        if (inner := machine.partitions.get(self.inner)) is None or inner.process is not Process.RUNNING:
            self._build()
            machine = self.w.machine
            w = self.w
        alive = {each.id for each in machine.partitions.values() if each.process is Process.RUNNING}
        likely = (self.a, self.a, self.inner, self.inner, self.b, self.guest)
        caller = self.rng.choice([*3 * [each for each in likely if each in alive], 99])  # only processes call
        inside = self._subtree(caller)
        self.below = sorted(inside)
        if self.again and self.again[1] in alive:
            (code, args, files), caller = self.again
            inside = self._subtree(caller)
        else:
            code, args, files = self._call()
        # Now and then many times over, as whoever wants to use something up would do it.
        more = self.rng.random() < (AGAIN_LIKELY if self.again else AGAIN_BEGINS)
        self.again = ((code, args, files), caller) if more else None
        about = (caller, code, args, files)
        partners = self._partners(inside)
        before = self.known or {each: _whole(partition) for each, partition in machine.partitions.items()}
        reply = w.call(caller, code, args, files)  # never raises; checks the machine and the world
        self.statuses[reply.status] += 1
        after = {each: _whole(partition) for each, partition in machine.partitions.items()}
        changed = {each for each in before if after.get(each) != before[each]}
        if reply.status not in (HvStatus.SUCCESS, HvStatus.CALL_PENDING):
            assert after == before, (about, reply.status, changed)
        elif reply.status is HvStatus.SUCCESS and type(code) is int:
            self.succeeded[HypercallCode(code)] += 1
        assert changed <= inside | partners, (about, changed)
        for each in changed - inside:
            assert _authority(machine.partitions[each]) == _authority(pickle.loads(before[each])), (
                about,
                each,
            )
        for each in after.keys() & (changed | after.keys() - before.keys()):
            _check_size(machine.partitions[each], len(after[each]))
        self.known = {} if self._let_things_happen() else after

    def _let_things_happen(self) -> bool:
        """Time and processes go on as well."""
        w, rng = self.w, self.rng
        dice = rng.random()
        if dice < 0.03:
            w.bury()
        elif dice < 0.06:
            w.advance(rng.choice((0.1, 5)))
        elif dice < 0.08 and w.statistics_timer_ns is not None:
            w.refresh_statistics()
        elif dice < 0.1:
            for partition in list(w.starting):
                w.started(partition)
        return dice < 0.1

    def _subtree(self, top: int) -> set[int]:
        partitions = self.w.machine.partitions
        found, todo = set(), [top]
        while todo:
            if (each := todo.pop()) in partitions:
                found.add(each)
                todo += partitions[each].children
        return found

    def _partners(self, inside: set[int]) -> set[int]:
        """Whoever shares something with one of these, or is told of it."""
        machine = self.w.machine
        found = {machine.partitions[each].parent for each in inside} - {None}
        for each in machine.partitions.values():
            for port in each.ports.values():
                if port.connection is not None:
                    found |= _other_side(inside, each.id, port.connection_partition)
            for connection in each.connections.values():
                found |= _other_side(inside, each.id, connection.port_partition)
            for key in each.stats_pages:
                found |= _other_side(inside, each.id, key.partition)
            if each.device_domain is not None:
                found |= _other_side(inside, each.id, each.device_domain[0])
        for slot in machine.slots.values():
            for mapper, _ in slot.mappers:
                found |= _other_side(inside, slot.owner, mapper)
        return {each for each in found if each is not None}


def _other_side(inside: set[int], one: int, other: int) -> set[int]:
    if one in inside:
        return {other}
    return {one} if other in inside else set()


def _whole(partition: Partition) -> bytes:
    return pickle.dumps(partition, pickle.HIGHEST_PROTOCOL)


def _authority(partition: Partition) -> bytes:
    fields = {name: getattr(partition, name) for name in _AUTHORITY}
    fields["vps"] = {index: vp.sints for index, vp in partition.vps.items()}
    return pickle.dumps(fields, pickle.HIGHEST_PROTOCOL)


def _check_size(partition: Partition, size_bytes: int) -> None:
    """All that is known of a partition fits into the pages that were paid for it."""
    own = [entry.pages for entry in partition.gpa.entries.values() if entry.own]
    # The pages of its own slots hold its own memory; each slot's row comes on top.
    paid = CREATE_PARTITION_PAGES + partition.pool.in_use - sum(own)
    assert size_bytes <= paid * PAGE_BYTES + ROW_BYTES_MAX * len(own), (partition.id, size_bytes, paid)
