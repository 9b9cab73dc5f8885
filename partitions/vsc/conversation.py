"""What a guest and its VMBus host say to each other: steps and messages out, facts in, and whoever waits for one.

One thread waits on VP 0's interrupt line and takes the host's messages. What is legal when is `bus.channel_client`'s
business; this only carries it out.
"""

import contextlib
import os
import select
import threading
import time
from collections.abc import Callable, Sequence
from typing import Final
from uuid import UUID

from bus.channel_client import ChannelClient
from bus.channel_client_states import ClientChannelState
from bus.channel_events import (
    AllOffersDelivered,
    Connected,
    ConnectionRefused,
    Offered,
    Output,
    Rescinded,
    SendMessage,
    StreamRefused,
)
from bus.protocol_errors import RemoteProtocolError
from bus.synic import CHANNEL_MESSAGE, VMBUS_SINT
from partitions.vp.processor import VirtualProcessor
from partitions.vsc.arrivals import Arrivals
from runtime.abi import HvStatus, HypercallError, HypervisorGone
from runtime.hypercalls.caller import HypercallPort

ANSWER_S_MAX: Final = 30.0  # for any one answer of the host; a root that is being replaced answers late
POST_ATTEMPTS_MAX: Final = 100  # as Linux: the host's buffers are full, try again after a doubling pause
_POST_PAUSE_MS_MAX: Final = 250.0


class VmbusError(Exception):
    """The bus, or one channel, cannot be used. The text says which step failed."""


class HostConversation:
    """A guest's part of it. Whoever derives from it is told what becomes of its channels."""

    def __init__(self, vps: Sequence[VirtualProcessor], hypercalls: HypercallPort) -> None:
        self._vps, self._hypercalls = vps, hypercalls
        self._client = ChannelClient()
        self._changed = threading.Condition()
        self.arrivals: Final = Arrivals(self._changed)  # of devices, and departures
        self._facts: set[Output] = set()  # what the host has said and nobody has asked for yet
        self.refused_streams: Final[set[UUID]] = set()  # by endpoint; of those that somebody waits for
        self._all_offers = False
        self._lost: str | None = None
        self._stop_fd = os.eventfd(0, os.EFD_CLOEXEC)
        self._thread = threading.Thread(target=self._receive, name="vmbus", daemon=True)

    def _taken_away(self, relid: int) -> None:
        """The host has rescinded this channel. With the lock held."""

    def _bus_is_lost(self) -> None:
        """The hypervisor is gone. With the lock held."""

    def _connect(self) -> None:
        """Negotiate a version and learn the offers. Raises VmbusError."""
        for vp in self._vps:
            vp.enable((VMBUS_SINT,))
        self._thread.start()
        self._post_contact()
        answer = self._await(lambda fact: isinstance(fact, Connected | ConnectionRefused), "a version")
        if isinstance(answer, ConnectionRefused):
            raise VmbusError(f"the host refused the connection (state {answer.state})")
        self._do(self._client.request_offers)
        with self._changed:
            self._wait_until(lambda: self._all_offers, "the offers")

    def _stop_listening(self) -> None:
        os.eventfd_write(self._stop_fd, 1)
        self._thread.join(1)
        os.close(self._stop_fd)

    def _post_contact(self) -> None:
        try:
            self._do(self._client.start)
        except HypercallError as error:
            if error.status != HvStatus.INVALID_CONNECTION_ID:
                raise VmbusError(f"the host cannot be reached: {error}") from error
            self._do(self._client.contact_unreachable)

    def _do(self, step: Callable[[], list[Output] | tuple[int, list[Output]]]) -> int:
        """Take one step of the state machine and carry out what it says. Returns the step's handle, if it has one."""
        with self._changed:
            result = step()
            handle, outputs = result if isinstance(result, tuple) else (0, result)
            self._carry_out(outputs)
        return handle

    def _carry_out(self, outputs: Sequence[Output]) -> None:
        """With the lock held, so that messages leave in the order of the decisions."""
        for output in outputs:
            match output:
                case SendMessage(connection_id, payload):
                    self._post(connection_id, payload)
                case AllOffersDelivered():
                    self._all_offers = True
                case StreamRefused(endpoint):
                    self.refused_streams.add(endpoint)
                case Offered(offer):
                    self.arrivals.offered(offer, first=not self._all_offers)
                case Rescinded(relid, in_use):
                    self.arrivals.rescinded(relid)
                    self._taken_away(relid)
                    if in_use:
                        self._carry_out(self._client.close(relid))
                case _:
                    self._facts.add(output)
        self._changed.notify_all()

    def _post(self, connection_id: int, payload: bytes) -> None:
        pause_ms = 0.25
        for attempt in range(POST_ATTEMPTS_MAX):
            try:
                self._hypercalls.post_message(connection_id, CHANNEL_MESSAGE, payload)
            except HypercallError as error:
                full = error.status in (HvStatus.INSUFFICIENT_BUFFERS, HvStatus.INSUFFICIENT_MEMORY)
                if not full or attempt == POST_ATTEMPTS_MAX - 1:
                    raise
            else:
                return
            time.sleep(pause_ms / 1000)
            pause_ms = min(pause_ms * 2, _POST_PAUSE_MS_MAX)

    def _await(
        self,
        matches: Callable[[Output], bool],
        what: str,
        gone: Callable[[], bool] = lambda: False,
        seconds_max: float = ANSWER_S_MAX,
    ) -> Output:
        """Wait for one thing that the host says, and take it off the list.

        VmbusError: it did not come in time, the bus is lost, or its channel was rescinded (`gone`): then it won't.
        """

        def found() -> bool:
            return any(matches(fact) for fact in self._facts)

        with self._changed:
            self._wait_until(lambda: found() or gone(), what, seconds_max)
            if not found():
                raise VmbusError(f"the host took the channel away: waited for {what}")
            fact = next(fact for fact in self._facts if matches(fact))
            self._facts.discard(fact)
        return fact

    def _gone(self, relid: int) -> Callable[[], bool]:
        """Whether the channel is rescinded, or was from here on: whoever sleeps may find it offered again."""
        before = self.arrivals.rescinds[relid]
        return lambda: (
            self._client.channel_state(relid) in (None, ClientChannelState.RESCINDED)
            or self.arrivals.rescinds[relid] != before
        )

    def _wait_until(
        self, condition: Callable[[], bool], what: str, seconds_max: float = ANSWER_S_MAX
    ) -> None:
        if not self._changed.wait_for(lambda: condition() or self._lost is not None, seconds_max):
            raise VmbusError(f"the host did not answer within {seconds_max:g} s: waited for {what}")
        if self._lost is not None and not condition():
            raise VmbusError(f"the bus is lost: {self._lost}")

    def _receive(self) -> None:
        """The control thread: VP 0's line, the host's messages, the state machine."""
        vp, poller = self._vps[0], select.poll()
        poller.register(vp.line_fd, select.POLLIN)
        poller.register(self._stop_fd, select.POLLIN)
        try:
            while all(fd != self._stop_fd for fd, _ in poller.poll()):
                vp.acknowledge()
                for message_type, _, payload in vp.take_messages(VMBUS_SINT):
                    if message_type != CHANNEL_MESSAGE:
                        continue
                    with self._changed, contextlib.suppress(RemoteProtocolError):
                        self._carry_out(self._client.receive(payload))
        except (HypervisorGone, HypercallError) as error:
            with self._changed:
                self._lost = str(error)
                self._bus_is_lost()
                self._changed.notify_all()
