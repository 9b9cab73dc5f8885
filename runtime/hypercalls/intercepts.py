"""Port and memory accesses, and what a parent does about its children's. One family of `runtime.hypercalls.caller`."""

from __future__ import annotations

from dataclasses import dataclass

from runtime.abi import HypercallCode, InterceptMask, InterceptType, RegisterName
from runtime.hypercalls.connection import HypercallSocket, expect

_READ_WRITE = InterceptMask.READ | InterceptMask.WRITE


@dataclass(frozen=True, slots=True)
class AccessResult:
    """How an access ended."""

    value: int  # what was read; all ones where nobody answers
    left: (
        int  # elements of a string access that were not moved; of those that were to be read, each is `value`
    )


class InterceptCalls(HypercallSocket):
    """See `runtime.hypercalls.caller.HypercallPort`.

    The two accesses wait for the parent, for as long as it takes, and other threads' calls wait with them. All others
    do not.
    """

    def access_port(
        self,
        vp: int,
        port: int,
        size: int,
        *,
        write: bool = False,
        value: int = 0,
        count: int = 0,
        gpa: int = 0,
    ) -> AccessResult:
        """IN or OUT of 1, 2 or 4 bytes; with a count REP INS or REP OUTS, between the port and our memory at `gpa`."""
        args = {"vp": vp, "port": port, "size": size}
        if write:  # what is 0 need not travel
            args["write"], args["value"] = 1, value
        if count:
            args["count"], args["gpa"] = count, gpa
        result = self.call_briefly(HypercallCode.ACCESS_PORT, args)
        return AccessResult(expect(result["value"], int), expect(result["left"], int))

    def access_memory(self, vp: int, gpa: int, size: int, *, write: bool = False, value: int = 0) -> int:
        """A load or store of 1, 2, 4 or 8 bytes where we have no memory. What was read."""
        result = self.call(
            HypercallCode.ACCESS_MEMORY,
            vp=vp,
            gpa=gpa,
            size=size,
            write=int(write) or None,
            value=value or None,
        )
        return result.integer("value")

    # -- a parent's

    def intercept_ports(
        self, partition: int, first: int, last: int, access: InterceptMask = _READ_WRITE, vp: int = 0
    ) -> None:
        """Be told of a child's accesses, on SINT 0 of this VP of ours. An empty mask: no more."""
        self._install(partition, InterceptType.IO_PORT_RANGE, first | last << 16, access, vp)

    def intercept_pages(
        self, partition: int, gpfn: int, pages: int, access: InterceptMask = _READ_WRITE, vp: int = 0
    ) -> None:
        """The same for pages of its GPA space."""
        self._install(partition, InterceptType.MMIO, gpfn | (pages - 1) << 40, access, vp)

    def _install(
        self, partition: int, kind: InterceptType, parameter: int, access: InterceptMask, vp: int
    ) -> None:
        self.call(
            HypercallCode.INSTALL_INTERCEPT,
            partition=partition,
            access=int(access),
            type=int(kind),
            parameter=parameter,
            vp=vp,
        )

    def answer_intercept(self, partition: int, vp: int, registers: dict[int, int]) -> None:
        """Set registers and let the VP go on: behind the instruction if RIP is there, or else with it again.

        INVALID_VP_STATE: it does not wait for an answer; nothing was set.
        """
        self.call(
            HypercallCode.SET_VP_REGISTERS,
            partition=partition,
            vp=vp,
            registers=[
                *([name, value] for name, value in registers.items()),
                [RegisterName.INTERCEPT_SUSPEND, 0],
            ],
        )

    def complete_intercept(self, partition: int, vp: int, kind: InterceptType, value: int = 0) -> None:
        """The same for the usual case, in fewer words: `value` was read, and the instruction is over."""
        self.call_briefly(
            HypercallCode.REGISTER_INTERCEPT_RESULT,
            {"partition": partition, "vp": vp, "type": int(kind), "value": value},
        )
