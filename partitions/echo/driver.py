"""An echo: the smallest driver there is, to measure with and to learn from.

What a checked request is answered is the business of `runtime.measure.exchanges`, as for every transport of the ladder.
An answer depends on nothing but the request and how many came before it from this guest.
"""

from typing import Final

from partitions.sdk.context import DriverContext
from partitions.sdk.custom import CustomDriver
from runtime.measure.exchanges import make_answer

ECHO_KEY: Final = 0  # both ends are ours; the key is for transports that one does not trust


class EchoDriver(CustomDriver):
    def __init__(self, context: DriverContext) -> None:
        super().__init__(context)
        self.answer = make_answer(ECHO_KEY)  # type: ignore[assignment,method-assign]  # one call less

    def opened(self) -> CustomDriver:
        """Each guest has a count of its own."""
        return EchoDriver(self.context)
