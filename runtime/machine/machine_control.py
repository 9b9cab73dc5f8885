"""What can be asked of a running machine from outside, by whoever may use its management socket."""

from collections.abc import Mapping
from typing import Any, Protocol

from runtime.machine.management_wire import ManagementStatus


class ControlError(Exception):
    """A request that can't be carried out; the machine is as it was. Goes to the client as it stands."""

    def __init__(self, status: ManagementStatus, message: str) -> None:
        super().__init__(status, message)
        self.status, self.message = status, message


class MachineControl(Protocol):
    """What the management socket can ask of a machine. All may raise ControlError.

    Results are maps of texts, numbers, booleans, lists and maps.
    """

    async def status(self) -> Mapping[str, Any]: ...
    async def list_partitions(self) -> list[Mapping[str, Any]]: ...
    async def show(self, name: str) -> Mapping[str, Any]: ...
    async def kill(self, name: str) -> None:
        """SIGKILL the partition's process. NOT_FOUND."""

    async def crash(self, how: str) -> None:
        """Break the root: "kill", "hang" or "stuck". REFUSED."""

    async def seam(self, step: str, passes: int, deaths: int) -> None:
        """Have the root die exactly at a named step, at that pass; and its successors, `deaths` in all. REFUSED."""

    async def crash_driver(self, name: str, how: str) -> None:
        """Break a driver partition: "kill", "hang" or "stuck". REFUSED; NOT_FOUND."""

    async def seam_driver(self, name: str, step: str, passes: int, deaths: int) -> None:
        """As `seam`, for a driver partition. REFUSED; NOT_FOUND."""

    async def inject(self, order: Mapping[str, Any]) -> int:
        """The number that it got. REFUSED."""

    async def heal(self, number: int | None) -> None:
        """One, or all. NOT_FOUND."""

    async def injected(self) -> list[Mapping[str, Any]]:
        """{order, passes, fired} of each that is armed."""

    async def service(self) -> None:
        """Replace a healthy root. REFUSED."""

    async def interrupts(self, name: str) -> list[Mapping[str, Any]]:
        """A row for each port, with what became of its interrupts; "" for all partitions. NOT_FOUND."""

    async def sched(self) -> Mapping[str, Any]:
        """The scheduler's mechanism and its books: {partitions: [...], mechanism, now_ns, ...}."""

    async def schedule(self, name: str, shares: Mapping[str, Any]) -> None:
        """Change a partition's `weight`, `reserve` or `cap`, in the hypervisor's units. NOT_FOUND."""

    async def hypervisor(self) -> Mapping[str, Any]:
        """What the broker says of itself."""

    async def memory(self, name: str) -> list[Mapping[str, Any]]:
        """{device, gpfn, pages}: what the root uses pages of that partition for. REFUSED."""

    async def integration(self, name: str, service: str, order: Mapping[str, Any]) -> Mapping[str, Any]:
        """Ask a guest, by one of its integration services. REFUSED."""

    async def operate(self, operation: str, name: str, order: Mapping[str, Any]) -> Mapping[str, Any]:
        """Change what runs. REFUSED."""

    async def config(self) -> Mapping[str, Any]:
        """As `runtime.config.model.to_tables` has it."""

    async def reboot(self) -> None:
        """End every partition, and begin again with a new root. REFUSED."""

    async def stop(self) -> None:
        """Begin an orderly end and return at once."""
