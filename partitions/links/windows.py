"""Where a link's pages stand in the GPA space of who borrows them: at the top, one window for each of its devices.

Both who maps them, the parent, and who uses them know it from the place of the link among the guest's devices.
"""

from typing import Final

from partitions.stack.guest_memory import WINDOW_PAGES, WINDOWS, GpaWindows
from runtime.abi import SLOT_PAGES_MAX

_TOP: Final = WINDOWS - 1


def window_of(place: int) -> int:
    """The window's number. `place`: which of the partition's devices it is."""
    return _TOP - place


def first_gpfn_of(place: int) -> int:
    """Where the first page of the lender's rings is mapped."""
    return window_of(place) * WINDOW_PAGES + SLOT_PAGES_MAX


class LinkWindow(GpaWindows):
    """One window, for one GPADL at a time."""

    def __init__(self, number: int) -> None:
        self._number, self._is_taken = number, False

    def take(self) -> int:
        """LookupError: it is in use."""
        if self._is_taken:
            raise LookupError("a link takes the pages of one GPADL")
        self._is_taken = True
        return self._number

    def claim(self, window: int) -> None:
        self._is_taken = True

    def free(self, window: int) -> None:
        self._is_taken = False
