"""The limit beside which each boot of a comparison stands: what two C processes need to hand each other a slot."""

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import Final

from runtime.exits import CommandError
from runtime.measure.ladder_rows import LIMIT, c_row
from runtime.measure.reference_programs import reference_programs
from runtime.measure.results import Placement
from runtime.measure.sample import Order

_PROGRAM: Final = "ipc_pingpong"
_PAYLOAD_BYTES: Final = 64
_SECONDS: Final = 0.01
_NOT_KEPT: Final = "the limit is not measured, so the result is not kept"


@contextlib.contextmanager
def limit_meter(say: Callable[[str], None]) -> Iterator[Callable[[], float] | None]:
    """What measures it, in ns; None, and a line that says why, where it cannot be measured here."""
    with contextlib.ExitStack() as stack:
        allowed = sorted(os.sched_getaffinity(0))
        try:
            if len(allowed) < 2:
                raise CommandError("this process may use one CPU alone")
            programs = stack.enter_context(reference_programs(names=(_PROGRAM,)))
        except CommandError as error:
            say(f"{_NOT_KEPT}: {error}")
            yield None
            return
        row = c_row(programs, LIMIT)
        order = Order(
            payload_bytes=_PAYLOAD_BYTES,
            seconds=_SECONDS,
            placement=Placement.TWO_CPUS,
            client_cpus=frozenset({allowed[0]}),
            server_cpus=frozenset({allowed[1]}),
        )
        yield lambda: float(max(row.measure(order).measured.latency.percentile(50), 1))
