"""What partitions ask about processors, their own and the machine's.

Source: TLFS, HvCallGetLogicalProcessorRunTime, HvCallNotifyLongSpinWait, HvCallSendSyntheticClusterIpi,
HvCallGetVpIndexFromApicId, HvExtCallQueryCapabilities.
"""

from __future__ import annotations

from runtime.abi import VECTOR_MIN, VECTORS, HvStatus
from runtime.hypervisor.interrupts import request_vector
from runtime.hypervisor.machine import Call
from runtime.hypervisor.replies import DONE, Refused, Reply


def get_logical_processor_run_time(call: Call, *, lp: int) -> Reply:
    resources = call.machine.resources
    if lp >= resources.processor.logical_processors:
        raise Refused(HvStatus.INVALID_LP_INDEX)
    run_ns, _ = resources.processor_times_ns(lp)
    return Reply(values={"global_time": call.machine.now_ns // 100, "local_run_time": run_ns // 100})


def notify_long_spin_wait(call: Call, *, vp: int, spins: int) -> Reply:
    """A hint alone: the VP waits for a lock whose holder may not be running. It is counted."""
    if (processor := call.caller.vps.get(vp)) is None:
        raise Refused(HvStatus.INVALID_VP_INDEX)
    processor.long_spin_waits += 1
    return DONE


def send_synthetic_cluster_ipi(call: Call, *, vector: int, processors: int) -> Reply:
    """Bit n of `processors` is VP n of the caller."""
    if not VECTOR_MIN <= vector < VECTORS or not processors:
        raise Refused(HvStatus.INVALID_PARAMETER)
    targets = [vp for vp in range(processors.bit_length()) if processors >> vp & 1]
    if any(vp not in call.caller.vps for vp in targets):
        raise Refused(HvStatus.INVALID_VP_INDEX)
    for vp in targets:
        request_vector(call.machine, call.caller, call.caller.vps[vp], vector)
    return DONE


def get_vp_index_from_apic_id(call: Call, *, apic_ids: list[int]) -> Reply:
    """A VP's APIC id is its index."""
    if any(apic_id not in call.target.vps for apic_id in apic_ids):
        raise Refused(HvStatus.INVALID_PARAMETER)
    return Reply(values={"vps": list(apic_ids)})


def query_extended_capabilities(call: Call) -> Reply:
    return Reply(values={"capabilities": 0})  # no extended call but this one
