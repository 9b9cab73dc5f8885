"""What a simulated machine is to those who serve in it."""

from collections.abc import Callable
from typing import Any, Protocol

from bus.seam import Step
from partitions.simulated.costs import Costs
from partitions.simulated.kernel import Kernel


class Surroundings(Protocol):
    """What whoever serves needs of its machine, a root's life or a driver."""

    @property
    def kernel(self) -> Kernel: ...
    @property
    def costs(self) -> Costs: ...
    @property
    def hang_ms(self) -> int:
        """0: it promises nothing."""

    def watchers_of(self, server: str) -> list[Callable[[Step], bool]]:
        """Who is asked at each step of a server, whatever process that is at the moment."""

    def log(self, kind: str, partition: str | None = None, **fields: Any) -> None: ...
