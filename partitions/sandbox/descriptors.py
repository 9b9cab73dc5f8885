"""No descriptor but its own: what the zygote holds is not a partition's."""

import os
from collections.abc import Collection
from typing import Final

_STANDARD: Final = (0, 1)
_ERRORS: Final = 2
_BEYOND_ALL: Final = 1 << 20


def keep_only(kept: Collection[int]) -> None:
    """Close all but these and the standard ones."""
    first = _ERRORS + 1
    for descriptor in sorted(kept):
        if descriptor >= first:
            os.closerange(first, descriptor)
            first = descriptor + 1
    os.closerange(first, _BEYOND_ALL)


def replace_standard(console: int) -> None:
    """Nothing to read, nothing of the user's terminal: what is written to descriptor 2 goes to the console, under the
    partition's name. The interpreter itself does that when it crashes."""
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    for descriptor in _STANDARD:
        os.dup2(null, descriptor)
    os.dup2(console, _ERRORS)
    os.close(null)
