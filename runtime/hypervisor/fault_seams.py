"""Where faults on purpose meet the state machine: what it asks, at each seam, whoever has armed some.

`armed_faults` answers. It is loaded with the first fault, so the state machine knows no more of it than this.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol

from runtime.abi import HypercallCode
from runtime.hypervisor.effects import RaiseLine, RingDoorbell
from runtime.hypervisor.message import Message
from runtime.hypervisor.partition import Partition
from runtime.hypervisor.port import Port
from runtime.hypervisor.replies import Reply
from runtime.hypervisor.synthetic_timers import TimerKey

if TYPE_CHECKING:  # a machine without faults does not load these
    from runtime.chaos.faults.orders import Counts, Order

Line = RaiseLine | RingDoorbell  # an interrupt is the effect that raises it


class Decide(Protocol):
    """One more hypercall in the middle of an event: `dispatch.Hypervisor.decide`."""

    def __call__(self, caller_id: int, code: object, args: object, files: int = 0) -> Reply: ...


class FaultSeams(Protocol):
    """Of one machine. A FaultAgent, inside of an event."""

    def inject(self, order: Order) -> None:
        """Raises FaultRefused."""

    def heal(self, number: int | None) -> None: ...
    def counts(self) -> Mapping[int, Counts]: ...

    @property
    def touches_interrupts(self) -> bool:
        """Those that do not come by here have to be brought here."""

    @property
    def rung(self) -> set[Line]:
        """Doorbells, for who watches those and is not to take them again."""

    def meets_call(self, caller: Partition, code: HypercallCode, args: object, files: int) -> bool:
        """True: it is answered later. Raises Refused: it is refused. Before anything has been done for it."""

    def process_exited(self, partition: int) -> None:
        """Nobody waits for its answers any more."""

    def meets_message(self, owner: Partition, port: Port, message: Message) -> bool:
        """True: its port need not look after it any more."""

    def loses_heartbeat(self, partition: Partition) -> bool: ...

    def puts_off(self, key: TimerKey) -> int | None:
        """A timer that is due: until when. None: it may expire."""

    def meet_effects(self, timers_due_ns: int | None) -> int | None:
        """What becomes of the event's effects. Returns when the next of timers and faults is due."""

    def time_has_come(self, decide: Decide) -> None:
        """The moment that `meet_effects` named."""
