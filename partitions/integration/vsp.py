"""The host's end of one service on one opened channel: a thread that negotiates, takes answers, and asks by the clock.

Between two things that are due the thread sleeps in its ring: a service that nobody uses costs nothing. What somebody
else asks for is sent from that one's thread.
"""

import threading
import time
from collections.abc import Callable
from typing import Final

from bus.native import Channel, RingClosed, RingError, RingFull
from bus.packets import PacketError, PacketType
from bus.seam import Seam, Step
from bus.trace import Hop
from partitions.integration.bodies import Health, Heartbeat, TimeFlags, TimeSync, ticks_of
from partitions.integration.host_session import Answer, HostSession, Negotiated, NotNow, Phase
from partitions.integration.services import HEARTBEAT, TIME_SYNC, IcService
from partitions.integration.wire import IcError

BEAT_MS: Final = 2_000  # between two heartbeats, as Hyper-V
BEATS_MISSED_MAX: Final = 3  # in a row, until a guest is called lost
TIME_SAMPLE_MS: Final = 60_000  # between two samples of the time; the first message sets it
_INBAND: Final = int(PacketType.INBAND)
_NS_PER_MS: Final = 1_000_000
_FOR_EVER_NS: Final = -1

Done = Callable[[Answer | None], None]


class IcVsp:
    """`serve` runs in one thread; all else may be called from any."""

    def __init__(
        self, service: IcService, channel: Channel, seam: Seam, reference_time: Callable[[], int]
    ) -> None:
        """`reference_time`: of the guest, in 100 ns. Raises what a hypercall raises."""
        self.service, self._channel, self._seam = service, channel, seam
        self._reference_time = reference_time
        self._session = HostSession(service)
        self._lock = threading.Lock()  # of the session, and of sending
        self._done: Done | None = None  # whom the answer under way is for; None: for ourselves
        self._due_ns: int | None = None  # when we ask by ourselves; None: never
        self._sequence = 0
        self._beaten_ns = 0  # monotonic; when the guest answered last
        self.health = Health.UNKNOWN
        self.missed = 0  # beats, in a row
        self.requests = self.answers = self.malformed = 0
        self.waits_for_guest = False

    def replay(self) -> None:
        """What stands in the ring are answers to a predecessor: `serve` drops them."""

    def serve(self, stop: threading.Event) -> None:
        """Until `stop` is set or the channel is closed. Raises RingCorrupt: the guest broke the ring."""
        try:
            with self._lock:
                self._send(self._session.negotiate())
            while not stop.is_set():
                for kind, _, _, _, payload in self._channel.receive_batch(1, self._pause_ns()):
                    self._seam.passing(Step.TAKE)
                    self._take(kind, payload)
                    self._channel.release()
                if self._due_ns is not None and time.monotonic_ns() >= self._due_ns:
                    self._ask_by_the_clock()
        except RingClosed:
            pass
        finally:
            self._finish(None)

    def _pause_ns(self) -> int:
        due = self._due_ns
        return _FOR_EVER_NS if due is None else max(due - time.monotonic_ns(), 0)

    # -- answers

    def _take(self, kind: int, payload: bytes) -> None:
        try:
            if kind != _INBAND:
                raise IcError(f"packet type {kind}")
            with self._lock:
                meaning = self._session.receive(payload)
                if isinstance(meaning, Answer) and self._done is None:
                    self._heard(meaning)
        except IcError:
            self.malformed += 1
            return
        match meaning:
            case Negotiated(version):
                if version is not None and self.service in (HEARTBEAT, TIME_SYNC):
                    self._due_ns = time.monotonic_ns()
            case Answer():
                self.answers += 1
                self._channel.stamp(Hop.BACKEND_BEGIN)
                self._finish(meaning)

    def _heard(self, answer: Answer) -> None:
        """What we asked by ourselves."""
        if self.service is HEARTBEAT:
            beat = Heartbeat.decode(answer.body)
            known = beat.health in Health.__members__.values()
            self.health = Health(beat.health) if known else Health.UNKNOWN
            self._beaten_ns, self.missed = time.monotonic_ns(), 0

    def _finish(self, answer: Answer | None) -> None:
        with self._lock:
            done, self._done = self._done, None
        if done is not None:
            done(answer)

    # -- requests

    def ask(self, body: Callable[["IcVsp"], bytes], done: Done) -> None:
        """`done` is called once, by another thread: with the answer, or None when the channel closes first.

        Raises NotNow: nothing was sent. PacketError, ValueError: it can't be sent.
        """
        with self._lock:
            self._channel.stamp(Hop.BACKEND_END)
            data = self._session.request(body(self))
            self._done = done
            try:
                self._send(data)
            except (RingFull, RingError) as error:
                self._done = None
                self._session.give_up()
                raise NotNow("the guest does not read") from error

    def give_up(self) -> None:
        """Whoever asked waits no longer."""
        with self._lock:
            self._done = None
            self._session.give_up()

    @property
    def is_ready(self) -> bool:
        return self._session.phase is Phase.READY

    def _send(self, data: bytes) -> None:
        self._channel.send(data, self.requests + 1)
        self.requests += 1

    def _ask_by_the_clock(self) -> None:
        period_ms = BEAT_MS if self.service is HEARTBEAT else TIME_SAMPLE_MS
        self._due_ns = time.monotonic_ns() + period_ms * _NS_PER_MS
        with self._lock:
            try:
                if self.service is HEARTBEAT and self._sequence:
                    self.missed += 1  # until an answer comes
                    self._session.give_up()
                body = self._beat() if self.service is HEARTBEAT else self._time()
                self._send(self._session.request(body))
            except (NotNow, RingFull, PacketError):
                self._session.give_up()

    def _beat(self) -> bytes:
        self._sequence += 2
        return Heartbeat(self._sequence).encode()

    def _time(self) -> bytes:
        self._sequence += 1
        flags = TimeFlags.SYNC if self._sequence == 1 else TimeFlags.SAMPLE
        # The guest's clock first: what is lost in between makes its time late, by one hypercall, and never early.
        reference = self._reference_time()
        return TimeSync(ticks_of(time.time_ns()), reference, flags).encode(self._session.version)

    # -- what others want to know

    @property
    def heartbeat(self) -> str:
        """In a word."""
        if not self.is_ready or (not self._beaten_ns and self.missed <= BEATS_MISSED_MAX):
            return "no contact"
        return "lost" if self.missed > BEATS_MISSED_MAX else self.health.name.lower()

    def statistics(self) -> dict[str, int]:
        return {
            "requests": self.requests,
            "answers": self.answers,
            "stale": self._session.stale,
            "malformed": self.malformed,
        }
