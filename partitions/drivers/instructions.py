"""What a stack tells a driver's process, in order: one message at a time, and all that stands where one begins."""

from collections.abc import Iterable

from partitions.drivers import messages
from partitions.stack.message_outbox import MessageOutbox
from partitions.stack.stack_resources import RootResources
from partitions.stack.vmbus_ports import DRIVER_MESSAGE, driver_port


class Instructions:
    """To one driver partition, for as long as its stack lives."""

    def __init__(self, stack: RootResources, partition: int) -> None:
        port = driver_port(partition)
        self._outbox = MessageOutbox(stack.hypercalls, stack.nursery, port, DRIVER_MESSAGE)

    def tell_all(
        self, generation: int, serve: Iterable[messages.DriverMessage], closing: Iterable[int]
    ) -> None:
        """All that stands, once more: what was not delivered is in there.

        Args:
            closing: numbers of the openings that are to end.
        """
        self._outbox.clear()
        self._say(messages.Begin(generation))
        for each in serve:
            self._say(each)
        self._say(messages.End(generation))
        for number in closing:
            self._say(messages.Stop(number))
        self._outbox.flush()

    def tell(self, message: messages.DriverMessage) -> None:
        self._say(message)
        self._outbox.flush()

    def tell_time_had(self, guest: int, time_ns: int) -> None:
        """How much processor time a guest with a cap had elsewhere. It is told no more than it can take in: what a slow
        one is not told, its guests have there a second time."""
        if len(self._outbox) == 0:
            self.tell(messages.Used(guest, time_ns))

    def forget(self) -> None:
        """There is no process to be told."""
        self._outbox.clear()

    def _say(self, message: messages.DriverMessage) -> None:
        self._outbox.put(message.encode())
