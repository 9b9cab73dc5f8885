"""Reading and writing a few bytes of a partition's memory, without mapping it: for its parent's emulators.

Source: TLFS 2.0, HvCallReadGpa, HvCallWriteGpa, HV_ACCESS_GPA_RESULT_CODE.
"""

from __future__ import annotations

from runtime.abi import GPA_ACCESS_BYTES_MAX, PAGE_BYTES, AccessGpaResult, HvStatus, MapFlags
from runtime.hypervisor.gpa_space import Entry
from runtime.hypervisor.machine import Call
from runtime.hypervisor.replies import Refused, Reply


def read_gpa(call: Call, *, vp: int, gpa: int, size: int) -> Reply:
    found = _find(call, vp, gpa, size, MapFlags.READ)
    if not isinstance(found, AccessGpaResult):
        data = call.machine.resources.read_slot(found.slot, gpa - found.gpfn * PAGE_BYTES, size)
        if len(data) < size:
            raise Refused(HvStatus.INSUFFICIENT_MEMORY)
        return Reply(values={"result": int(AccessGpaResult.SUCCESS), "data": data})
    return Reply(values={"result": int(found), "data": b""})


def write_gpa(call: Call, *, vp: int, gpa: int, data: bytes) -> Reply:
    found = _find(call, vp, gpa, len(data), MapFlags.WRITE)
    if not isinstance(found, AccessGpaResult):
        call.machine.resources.write_slot(found.slot, gpa - found.gpfn * PAGE_BYTES, data)
        found = AccessGpaResult.SUCCESS
    return Reply(values={"result": int(found)})


def _find(call: Call, vp: int, gpa: int, size: int, access: MapFlags) -> Entry | AccessGpaResult:
    """The slot, or why the access ends there, as it would for the VP itself."""
    if vp not in call.target.vps:
        raise Refused(HvStatus.INVALID_VP_INDEX)
    if not 0 < size <= GPA_ACCESS_BYTES_MAX or gpa % PAGE_BYTES + size > PAGE_BYTES:
        raise Refused(HvStatus.INVALID_PARAMETER)
    entries = call.target.gpa.touching(gpa // PAGE_BYTES, 1)
    if not entries:
        return AccessGpaResult.UNMAPPED
    if not entries[0].access & access:
        read = access is MapFlags.READ
        return AccessGpaResult.READ_INTERCEPT if read else AccessGpaResult.WRITE_INTERCEPT
    return entries[0]
