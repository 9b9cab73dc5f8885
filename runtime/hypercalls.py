"""The calling side of the hypervisor: a method for each call, with its arguments and results typed.

A call takes some ten microseconds and never waits for another partition, so it may be made from a trio task.
Descriptors in a result belong to the caller, who closes them.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from runtime.abi import (
    PARTITION_SELF,
    SINT_MASKED,
    ExitStatus,
    HvStatus,
    HypercallCode,
    HypercallError,
    MapFlags,
    PartitionProperty,
    PartitionState,
    PortProperty,
    PortType,
    Privilege,
    RegisterName,
    Route,
    sint_register,
)
from runtime.hypercall_results import (
    Birth,
    Doorbell,
    MappedSlot,
    MemoryBalance,
    Program,
    VpLines,
    decode_birth,
    decode_doorbell,
    decode_program,
    decode_slots,
)
from runtime.hypercall_socket import HypercallSocket, expect

__all__ = [
    "Birth",
    "Doorbell",
    "HypercallPort",
    "MappedSlot",
    "MemoryBalance",
    "Program",
    "VpLines",
    "adopt_socket",
]

_VECTOR_MIN: Final = 16  # of a SINT; below are the processor's exceptions
_READ_WRITE: Final = MapFlags.READ | MapFlags.WRITE


class HypercallPort(HypercallSocket):
    """This partition's hypercalls. Any thread may call; calls are made one after the other.

    Every method raises HypercallError if the hypervisor refused (it then changed nothing), and HypervisorGone
    if there is no hypervisor any more.
    """

    # -- partitions ----------------------------------------------------------------------------------------

    def get_partition_id(self) -> int:
        return self.call(HypercallCode.GET_PARTITION_ID).integer("partition")

    def get_next_child(self, previous: int = 0, parent: int = PARTITION_SELF) -> int:
        """The id after `previous`, or 0 at the end."""
        result = self.call(HypercallCode.GET_NEXT_CHILD_PARTITION, partition=parent, previous=previous)
        return result.integer("partition")

    def children(self, parent: int = PARTITION_SELF) -> Iterator[int]:
        previous = 0
        while previous := self.get_next_child(previous, parent):
            yield previous

    def create_partition(self) -> int:
        return self.call(HypercallCode.CREATE_PARTITION).integer("partition")

    def initialize(self, partition: int) -> None:
        self.call(HypercallCode.INITIALIZE_PARTITION, partition=partition)

    def finalize(self, partition: int) -> PartitionState:
        """Kill its process and all below it. FINALIZING until they are reaped: see `watch_children`."""
        return PartitionState(
            self.call(HypercallCode.FINALIZE_PARTITION, partition=partition).integer("state")
        )

    def delete(self, partition: int) -> None:
        self.call(HypercallCode.DELETE_PARTITION, partition=partition)

    def get_property(self, partition: int, code: PartitionProperty) -> int:
        result = self.call(HypercallCode.GET_PARTITION_PROPERTY, partition=partition, property=int(code))
        return result.integer("value")

    def set_property(self, partition: int, code: PartitionProperty, value: int) -> None:
        self.call(
            HypercallCode.SET_PARTITION_PROPERTY, partition=partition, property=int(code), value=int(value)
        )

    def get_state(self, partition: int) -> PartitionState:
        return PartitionState(self.get_property(partition, PartitionProperty.STATE))

    def get_exit_status(self, partition: int) -> ExitStatus | None:
        """None: its process has not ended."""
        try:
            return ExitStatus.from_wire(self.get_property(partition, PartitionProperty.EXIT_STATUS))
        except HypercallError as error:
            if error.status == HvStatus.NO_DATA:
                return None
            raise

    def set_privileges(self, partition: int, privileges: Privilege) -> None:
        """At most the caller's own."""
        self.set_property(partition, PartitionProperty.PRIVILEGE_FLAGS, privileges)

    def set_program(
        self,
        partition: int,
        module: str,
        name: str,
        args: Mapping[str, object] | None = None,
        files: Sequence[int] = (),
    ) -> None:
        """What VP 0 will run. The descriptors are duplicated; the program gets them with its birth."""
        self.call(
            HypercallCode.SET_PARTITION_PROPERTY_EX,
            files,
            partition=partition,
            property=int(PartitionProperty.PROGRAM),
            value={"module": module, "name": name, "args": dict(args or {})},
        )

    def get_program(self, partition: int) -> Program:
        result = self.call(
            HypercallCode.GET_PARTITION_PROPERTY_EX,
            partition=partition,
            property=int(PartitionProperty.PROGRAM),
        )
        return decode_program(result)

    def watch_children(self) -> int:
        """An eventfd, raised whenever a child's process started or ended, or a child's state changed."""
        return self.call(HypercallCode.WATCH_CHILDREN).one_fd()

    def get_birth(self) -> Birth:
        return decode_birth(self.call(HypercallCode.GET_BIRTH))

    def heartbeat(self, within_ms: int) -> None:
        """Promise to call again within so long; the hypervisor kills a partition that does not. 0: no promise."""
        self.call(HypercallCode.HEARTBEAT, within_ms=within_ms)

    # -- memory --------------------------------------------------------------------------------------------

    def deposit(self, partition: int, pages: int) -> None:
        """From the caller's pool into a child's."""
        self.call(HypercallCode.DEPOSIT_MEMORY, partition=partition, pages=pages)

    def withdraw(self, partition: int, pages: int) -> None:
        """From a child's pool into the caller's."""
        self.call(HypercallCode.WITHDRAW_MEMORY, partition=partition, pages=pages)

    def balance(self, partition: int = PARTITION_SELF) -> MemoryBalance:
        result = self.call(HypercallCode.GET_MEMORY_BALANCE, partition=partition)
        return MemoryBalance(result.integer("available"), result.integer("in_use"))

    def map_gpa_pages(
        self, gpfn: int, pages: int, flags: MapFlags = _READ_WRITE, partition: int = PARTITION_SELF
    ) -> MappedSlot:
        """New zeroed pages from the target's own pool: one slot, one memfd."""
        result = self.call(
            HypercallCode.MAP_GPA_PAGES,
            partition=partition,
            gpfn=gpfn,
            pages=pages,
            flags=int(flags | MapFlags.ZEROED),
        )
        return decode_slots(result)[0]

    def map_partition_pages(
        self,
        source_partition: int,
        source_gpfn: int,
        pages: int,
        gpfn: int,
        flags: MapFlags = _READ_WRITE,
        partition: int = PARTITION_SELF,
    ) -> list[MappedSlot]:
        """Map another partition's slots, whole: each one that the range touches, in ascending order.

        The caller is the target or its ancestor, and the source or its ancestor. `source_gpfn` lands at
        `gpfn`.
        """
        result = self.call(
            HypercallCode.MAP_GPA_PAGES,
            partition=partition,
            gpfn=gpfn,
            pages=pages,
            flags=int(flags),
            source_partition=source_partition,
            source_gpfn=source_gpfn,
        )
        return decode_slots(result)

    def unmap_gpa_pages(self, gpfn: int, pages: int, partition: int = PARTITION_SELF) -> int:
        """Unmap the slots in the range; returns how many. The caller's own mmap is its own to undo."""
        result = self.call(HypercallCode.UNMAP_GPA_PAGES, partition=partition, gpfn=gpfn, pages=pages)
        return result.integer("slots")

    def claim_gpa_pages(self, gpfn: int, pages: int) -> list[MappedSlot]:
        """Descriptors of the caller's own slots that the range touches, for instance mapped by its parent."""
        return decode_slots(self.call(HypercallCode.CLAIM_GPA_PAGES, gpfn=gpfn, pages=pages))

    # -- virtual processors --------------------------------------------------------------------------------

    def create_vp(self, vp: int, partition: int = PARTITION_SELF) -> VpLines | None:
        """None for another partition, which learns of its VPs at its birth."""
        result = self.call(HypercallCode.CREATE_VP, partition=partition, vp=vp)
        return VpLines(vp, *result.fds) if result.fds else None

    def delete_vp(self, vp: int, partition: int = PARTITION_SELF) -> None:
        self.call(HypercallCode.DELETE_VP, partition=partition, vp=vp)

    def start_vp(self, partition: int, vp: int = 0) -> None:
        """VP 0 of a partition with a program: spawn its process, which runs some ms after the reply."""
        self.call(HypercallCode.START_VIRTUAL_PROCESSOR, partition=partition, vp=vp)

    def get_vp_registers(self, names: Sequence[int], vp: int, partition: int = PARTITION_SELF) -> list[int]:
        result = self.call(
            HypercallCode.GET_VP_REGISTERS, partition=partition, vp=vp, names=[int(name) for name in names]
        )
        return [expect(value, int) for value in expect(result.values["values"], list)]

    def set_vp_registers(
        self, registers: Mapping[int, int], vp: int, partition: int = PARTITION_SELF
    ) -> None:
        """All or none."""
        self.call(
            HypercallCode.SET_VP_REGISTERS,
            partition=partition,
            vp=vp,
            registers=[[int(name), int(value)] for name, value in registers.items()],
        )

    def enable_synic(
        self, vp: int, sints: Sequence[int], sim_gpfn: int = 0, sief_gpfn: int = 0, vector: int = _VECTOR_MIN
    ) -> None:
        """What a guest does at boot, in Linux's order: message page, flag page, SINTs, then the switch.

        The page numbers are the guest's bookkeeping; the pages are where it mapped their descriptors.
        """
        registers: dict[int, int] = {
            RegisterName.SIMP: sim_gpfn << 12 | 1,
            RegisterName.SIEFP: sief_gpfn << 12 | 1,
        }
        registers.update({sint_register(sint): vector for sint in sints})
        registers[RegisterName.SCONTROL] = 1
        self.set_vp_registers(registers, vp)

    def mask_sint(self, vp: int, sint: int) -> None:
        self.set_vp_registers({sint_register(sint): SINT_MASKED}, vp)

    def end_of_message(self, vp: int) -> None:
        """Owed after emptying a slot whose pending flag was set: the next message follows."""
        self.set_vp_registers({RegisterName.EOM: 0}, vp)

    # -- ports ---------------------------------------------------------------------------------------------

    def create_port(
        self,
        port: int,
        connection_partition: int,
        port_type: PortType,
        sint: int,
        vp: int = 0,
        *,
        partition: int = PARTITION_SELF,
        base_flag: int = 0,
        flag_count: int = 0,
    ) -> None:
        """A port of `partition` that `connection_partition` may connect to, once."""
        self.call(
            HypercallCode.CREATE_PORT,
            partition=partition,
            port=port,
            connection_partition=connection_partition,
            type=int(port_type),
            sint=sint,
            vp=vp,
            base_flag=base_flag,
            flag_count=flag_count,
        )

    def delete_port(self, port: int, partition: int = PARTITION_SELF) -> None:
        """Drops its queued messages; its connection stays, and posting to it is INVALID_PORT_ID."""
        self.call(HypercallCode.DELETE_PORT, partition=partition, port=port)

    def connect_port(
        self,
        connection: int,
        port_partition: int,
        port: int,
        *,
        partition: int = PARTITION_SELF,
        route: Route = Route.BROKER,
    ) -> None:
        """Give `partition` the connection id `connection`. The route matters for event ports only."""
        self.call(
            HypercallCode.CONNECT_PORT,
            partition=partition,
            connection=connection,
            port_partition=port_partition,
            port=port,
            route=int(route),
        )

    def disconnect_port(self, connection: int, partition: int = PARTITION_SELF) -> None:
        """The port can be connected again. Messages already queued stay."""
        self.call(HypercallCode.DISCONNECT_PORT, partition=partition, connection=connection)

    def get_posted_messages(self, port: int, partition: int = PARTITION_SELF) -> int:
        """How many messages were ever posted to a message port."""
        result = self.call(
            HypercallCode.GET_PORT_PROPERTY,
            partition=partition,
            port=port,
            property=int(PortProperty.POST_COUNT),
        )
        return result.integer("value")

    def post_message(self, connection: int, message_type: int, payload: bytes) -> None:
        """Queue one SynIC message of at most 240 bytes. INSUFFICIENT_BUFFERS: 16 wait, retry later."""
        self.call(HypercallCode.POST_MESSAGE, connection=connection, type=message_type, payload=payload)

    def signal_event(self, connection: int, flag: int = 0) -> None:
        """Set an event flag by hypercall; the fast way is the connection's doorbell."""
        self.call(HypercallCode.SIGNAL_EVENT, connection=connection, flag=flag)

    def claim_port_doorbell(self, port: int) -> Doorbell:
        return decode_doorbell(self.call(HypercallCode.CLAIM_DOORBELL, port=port))

    def claim_connection_doorbell(self, connection: int, flag: int = 0) -> Doorbell:
        return decode_doorbell(self.call(HypercallCode.CLAIM_DOORBELL, connection=connection, flag=flag))


def adopt_socket(fd: int) -> HypercallPort:
    """The port on an inherited descriptor, which is from now on not inheritable."""
    os.set_inheritable(fd, False)
    return HypercallPort(socket.socket(fileno=fd))
