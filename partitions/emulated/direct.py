"""The parent's end of the direct way: a thread for each child, which answers what stands in its intercept page."""

import contextlib
import os
import threading
import time
from collections.abc import Callable
from typing import Final

from bus.intercept_page import DirectAnswer, DirectRequest, InterceptPage
from bus.memory import MemorySlot
from bus.native import ServiceBudget, eventfd_signal
from partitions.vp.intercept_ports import (
    GUEST_INTERCEPT_CONNECTION,
    GUEST_INTERCEPT_PORT,
    INTERCEPT_PAGE_GPFN,
    intercept_port,
)
from runtime.abi import HypercallError, PortType, Route
from runtime.hypercalls.caller import HypercallPort

_PAGES_GPFN: Final = 1 << 38  # in the parent's own space: a page for each child, by its id
_BELL_BYTES: Final = 8  # of an eventfd
SERVICE_REST_NS_MAX: Final = 1_000_000_000  # of one rest; bus/native/service_budget.h says the same
_SINT: Final = 3  # of both: no flag is ever set by the direct route


class DirectServer:
    """Serves one child, from `start` to `stop`."""

    def __init__(self, hypercalls: HypercallPort, own: int, child: int, *, taken_over: bool) -> None:
        """Raises HypercallError."""
        self._call, self._child = hypercalls, child
        self._ours = intercept_port(child)
        at = _PAGES_GPFN + child
        if taken_over:
            (mapped,) = hypercalls.claim_gpa_pages(at, 1)
        else:
            hypercalls.map_gpa_pages(INTERCEPT_PAGE_GPFN, 1, partition=child)
            (mapped,) = hypercalls.map_partition_pages(child, INTERCEPT_PAGE_GPFN, 1, at)
            self._connect(own)
        self._slot: Final = MemorySlot.from_fd(mapped.fd, mapped.gpfn, mapped.pages)
        self._page: Final = InterceptPage(self._slot.memory)
        self._bell: Final = hypercalls.claim_port_doorbell(self._ours).fd
        self._child_bell: Final = hypercalls.claim_connection_doorbell(self._ours).fd
        self._ends = threading.Event()
        self._thread: threading.Thread | None = None

    def _connect(self, own: int) -> None:
        call, child, ours = self._call, self._child, self._ours
        event, direct = PortType.EVENT, Route.DIRECT
        call.create_port(ours, child, event, _SINT, base_flag=1, flag_count=1)
        call.connect_port(GUEST_INTERCEPT_CONNECTION, own, ours, partition=child, route=direct)
        call.create_port(GUEST_INTERCEPT_PORT, own, event, _SINT, partition=child, base_flag=1, flag_count=1)
        call.connect_port(ours, child, GUEST_INTERCEPT_PORT, route=direct)

    def start(
        self, answer: Callable[[DirectRequest], DirectAnswer], budget: ServiceBudget | None = None
    ) -> None:
        """`answer` is called in the thread, which pays with the budget, and rests when it is in debt."""
        self._thread = threading.Thread(
            target=self._serve, args=(answer, budget or ServiceBudget()), name="direct", daemon=True
        )
        self._thread.start()

    def _serve(self, answer: Callable[[DirectRequest], DirectAnswer], budget: ServiceBudget) -> None:
        eventfd_signal(self._child_bell)  # a predecessor may have answered and not said so
        begun_ns = None  # of what was not paid for yet; nobody counts while there is no limit
        while not self._ends.is_set():
            if not budget.share:
                begun_ns = None
            else:
                now_ns = time.thread_time_ns()
                rest_ns = budget.charge(0 if begun_ns is None else now_ns - begun_ns)
                begun_ns = now_ns
                if rest_ns:
                    self._ends.wait(min(rest_ns, SERVICE_REST_NS_MAX) / 1e9)
                    continue
            # Before the first wait: a predecessor may have left a request unanswered.
            if (request := self._page.request()) is not None:
                self._page.reply(request.sequence, answer(request))
                eventfd_signal(self._child_bell)
            else:
                os.read(self._bell, _BELL_BYTES)  # unlike eventfd_read, it goes on after a signal

    def stop(self) -> None:
        """The child has ended: its bell and ours are nobody's any more."""
        self._ends.set()
        eventfd_signal(self._bell)
        if self._thread is not None:
            self._thread.join()
        self._slot.close()
        with contextlib.suppress(HypercallError):  # the child's ends of them took them along
            self._call.disconnect_port(self._ours)
        with contextlib.suppress(HypercallError):
            self._call.delete_port(self._ours)
        os.close(self._bell)
        os.close(self._child_bell)
