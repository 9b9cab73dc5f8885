"""The partition's own clock: its reference TSC page where that is valid, the register where it is not."""

import threading
from typing import Final

from bus.memory import MemorySlot
from bus.native import reference_time
from runtime.abi import HvStatus, HypercallError, RegisterName
from runtime.hypercalls.caller import HypercallPort

_PAGE_GPFN: Final = 0xF_2000


class ReferenceClock:
    """Owns the mapping of the page. Any thread may read it."""

    def __init__(self, port: HypercallPort) -> None:
        self._port = port
        self._page: MemorySlot | None = None
        self._denied = False
        self._claiming = threading.Lock()

    def read(self) -> int:
        """100 ns since the partition was created."""
        if self._page is None and not self._denied:
            with self._claiming:
                if self._page is None and not self._denied:
                    self._claim()
        if self._page is not None and (now := reference_time(self._page.memory)) is not None:
            return now
        return self._port.get_vp_registers([RegisterName.TIME_REF_COUNT], 0)[0]

    def _claim(self) -> None:
        try:
            fd = self._port.claim_reference_page()
        except HypercallError as error:
            if error.status != HvStatus.ACCESS_DENIED:
                raise
            self._denied = True
        else:
            self._page = MemorySlot.from_fd(fd, _PAGE_GPFN, 1, writable=False)
