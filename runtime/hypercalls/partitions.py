"""Partitions: their tree, life, properties and programs. One family of `runtime.hypercalls.caller`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from runtime.abi import (
    PARTITION_SELF,
    ExitStatus,
    HvStatus,
    HypercallCode,
    HypercallError,
    PartitionProperty,
    PartitionState,
    Privilege,
)
from runtime.hypercalls.connection import HypercallSocket
from runtime.hypercalls.results import Birth, Program, decode_birth, decode_program, decode_times


class PartitionCalls(HypercallSocket):
    """See `runtime.hypercalls.caller.HypercallPort`."""

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

    def capped_time(self, partition: int = PARTITION_SELF) -> dict[int, int]:
        """ns of processor time that each child with a cap has had so far, with the hypervisor's for it; by id."""
        result = self.call(
            HypercallCode.GET_PARTITION_PROPERTY_EX,
            partition=partition,
            property=int(PartitionProperty.CAPPED_TIME),
        )
        return decode_times(result)

    def watch_children(self) -> int:
        """An eventfd, raised whenever a child's process started or ended, or a child's state changed."""
        return self.call(HypercallCode.WATCH_CHILDREN).one_fd()

    def get_birth(self) -> Birth:
        return decode_birth(self.call(HypercallCode.GET_BIRTH))

    def heartbeat(self, within_ms: int) -> None:
        """Promise to call again within so long; the hypervisor kills a partition that does not. 0: no promise."""
        self.call(HypercallCode.HEARTBEAT, within_ms=within_ms)

    def suspend(self, partition: int) -> None:
        """Stop a child's process until `resume`. What it promised to do in time is not held against it."""
        self.set_property(partition, PartitionProperty.SUSPEND, 1)

    def end_process(self, partition: int) -> None:
        """Kill a child's process, if it has one. The partition's end, unless it outlives its processes."""
        self.set_property(partition, PartitionProperty.END_PROCESS, 1)

    def resume(self, partition: int) -> None:
        self.set_property(partition, PartitionProperty.SUSPEND, 0)
