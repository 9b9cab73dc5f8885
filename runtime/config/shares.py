"""Parts of a processor as people write them: "20%" in a config file or a command, 1/0x10000 of one after load.

0x10000 is the TLFS's unit for a reserve and a cap.
"""

import re
from typing import Final, Self

from runtime.abi import WHOLE_PROCESSOR

SHARE_PATTERN: Final = "^(100|[0-9]{1,2}([.][0-9]{1,3})?)%$"
_SHARE: Final = re.compile(r"(100|[0-9]{1,2}(?:[.][0-9]{1,3})?)%")


class CpuShare(int):
    """A fraction of one processor, in 1/0x10000."""

    __slots__ = ()

    @classmethod
    def parse(cls, value: object) -> Self:
        """Raises ValueError: the text says what is allowed."""
        if not isinstance(value, str) or not (match := _SHARE.fullmatch(value)):
            raise ValueError(
                'a part of one processor such as "20%", from "0%" to "100%", at most three decimals'
            )
        return cls(round(float(match[1]) * WHOLE_PROCESSOR / 100))

    @property
    def text(self) -> str:
        """13107 -> "20%". `parse` reads it back: three decimals tell all units apart."""
        return f"{round(self * 100 / WHOLE_PROCESSOR, 3):g}%"


def share_text(units: int) -> str:
    """For people: 6554 -> "10%"."""
    return f"{round(units * 100 / WHOLE_PROCESSOR, 2):g}%"
