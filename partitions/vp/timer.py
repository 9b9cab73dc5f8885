"""One of a VP's four synthetic timers, from the side of its program.

    vp.timers[0].periodic(10_000, sint=5)       a message of type TIMER_EXPIRED every millisecond
    vp.timers[1].one_shot(partition.reference_time() + 50_000, vector=0x40)

All times are the partition's reference time, in 100 ns. A message's payload is a `bus.synic.TimerExpired`.
"""

from runtime.abi import (
    TIMER_AUTO_ENABLE,
    TIMER_DIRECT,
    TIMER_LAZY,
    TIMER_PERIODIC,
    TIMER_SINT_SHIFT,
    TIMER_VECTOR_SHIFT,
    timer_config_register,
    timer_count_register,
)
from runtime.hypercalls.caller import HypercallPort


class VpTimer:
    """Owns nothing: the timer is the hypervisor's, and goes with its VP."""

    def __init__(self, vp: int, number: int, port: HypercallPort) -> None:
        self.number = number
        self._vp, self._port = vp, port

    def one_shot(self, at: int, *, sint: int | None = None, vector: int | None = None) -> None:
        """Once, not before the moment `at`; at once if that is past. By a message, or by a vector alone.

        Raises: ValueError: not exactly one of sint and vector.
        """
        self._start(_target(sint, vector), at)

    def periodic(
        self, period: int, *, sint: int | None = None, vector: int | None = None, lazy: bool = False
    ) -> None:
        """Every `period` from now on, and no oftener than the hypervisor allows.

        Args:
            lazy: what comes due while an earlier message still waits is left out; otherwise it is made up for.
        """
        self._start(_target(sint, vector) | TIMER_PERIODIC | (TIMER_LAZY if lazy else 0), period)

    def stop(self) -> None:
        """A message that waits for its slot still comes."""
        self._port.set_vp_registers({timer_count_register(self.number): 0}, self._vp)

    def _start(self, config: int, count: int) -> None:
        registers = {
            timer_config_register(self.number): config | TIMER_AUTO_ENABLE,  # stops what ran before
            timer_count_register(self.number): count,
        }
        self._port.set_vp_registers(registers, self._vp)


def _target(sint: int | None, vector: int | None) -> int:
    if (sint is None) == (vector is None):
        raise ValueError("a timer has a SINT or a vector")
    if sint is not None:
        return sint << TIMER_SINT_SHIFT
    assert vector is not None
    return TIMER_DIRECT | vector << TIMER_VECTOR_SHIFT
