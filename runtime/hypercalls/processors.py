"""Virtual processors and their registers. One family of `runtime.hypercalls.caller`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from runtime.abi import PARTITION_SELF, SINT_MASKED, HypercallCode, OverlayPage, RegisterName, sint_register
from runtime.hypercalls.connection import HypercallSocket, expect
from runtime.hypercalls.results import VpLines

_VECTOR_MIN: Final = 16  # of a SINT; below are the processor's exceptions


class ProcessorCalls(HypercallSocket):
    """See `runtime.hypercalls.caller.HypercallPort`."""

    def create_vp(self, vp: int, partition: int = PARTITION_SELF) -> VpLines | None:
        """None for another partition, which learns of its VPs at its birth."""
        result = self.call(HypercallCode.CREATE_VP, partition=partition, vp=vp)
        return VpLines(vp, *result.fds) if result.fds else None

    def delete_vp(self, vp: int, partition: int = PARTITION_SELF) -> None:
        self.call(HypercallCode.DELETE_VP, partition=partition, vp=vp)

    def start_vp(self, partition: int, vp: int = 0) -> None:
        """VP 0 of a partition with a program: spawn its process, which runs some ms after the reply."""
        self.call(HypercallCode.START_VIRTUAL_PROCESSOR, partition=partition, vp=vp)

    def load_driver(self, partition: int) -> None:
        """As `start_vp`, into the hypervisor's own process. OPERATION_DENIED: this hypervisor loads none."""
        self.call(HypercallCode.LOAD_DRIVER, partition=partition)

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

    def assert_interrupt(self, partition: int, vp: int, vector: int) -> None:
        """Request a vector of one VP of a child."""
        self.call(HypercallCode.ASSERT_VIRTUAL_INTERRUPT, partition=partition, vp=vp, vector=vector)

    def claim_interrupt_page(self, vp: int) -> int:
        """Descriptor of one page: bit n of it says that vector n of this VP was requested."""
        return self.call(HypercallCode.CLAIM_OVERLAY_PAGE, page=int(OverlayPage.INTERRUPTS), vp=vp).one_fd()

    def claim_reference_page(self) -> int:
        """Descriptor of the partition's reference TSC page, read only: see `bus.native.reference_time`."""
        return self.call(HypercallCode.CLAIM_OVERLAY_PAGE, page=int(OverlayPage.REFERENCE_TSC)).one_fd()

    def notify_long_spin_wait(self, spins: int, vp: int = 0) -> None:
        """A hint, counted: this VP waits for a lock whose holder may not be running."""
        self.call(HypercallCode.NOTIFY_LONG_SPIN_WAIT, vp=vp, spins=spins)

    def send_interrupt(self, vector: int, vps: Iterable[int]) -> None:
        """Request a vector of several VPs of the caller at once; all or none."""
        mask = sum(1 << vp for vp in set(vps))
        self.call(HypercallCode.SEND_SYNTHETIC_CLUSTER_IPI, vector=vector, processors=mask)

    def get_vp_indexes(self, apic_ids: Sequence[int], partition: int = PARTITION_SELF) -> list[int]:
        """A VP's APIC id is its index; INVALID_PARAMETER tells that one is not there."""
        result = self.call(
            HypercallCode.GET_VP_INDEX_FROM_APIC_ID, partition=partition, apic_ids=list(apic_ids)
        )
        return [expect(vp, int) for vp in expect(result.values["vps"], list)]

    def query_extended_capabilities(self) -> int:
        return self.call(HypercallCode.QUERY_EXTENDED_CAPABILITIES).integer("capabilities")

    def signal_event_direct(self, partition: int, vp: int, sint: int, flag: int) -> bool:
        """Set a flag of a child's VP, without a port. False: it was set already."""
        result = self.call(
            HypercallCode.SIGNAL_EVENT_DIRECT, partition=partition, vp=vp, sint=sint, flag=flag
        )
        return bool(result.integer("newly_signaled"))

    def post_message_direct(
        self, partition: int, vp: int, sint: int, message_type: int, payload: bytes
    ) -> None:
        """Into a child's message slot, without a port. INSUFFICIENT_BUFFERS: it is not empty, retry later."""
        self.call(
            HypercallCode.POST_MESSAGE_DIRECT,
            partition=partition,
            vp=vp,
            sint=sint,
            type=message_type,
            payload=payload,
        )
