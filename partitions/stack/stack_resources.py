"""What all guest buses of one virtualization stack share."""

import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from itertools import count

import trio

from bus.channel_actions import ConnectStream
from bus.seam import Seam
from partitions.faults.channel_faults import ChannelFaults
from partitions.faults.server_agent import ServerAgent
from partitions.stack.backings import Backings
from partitions.stack.capped_time import CappedTime
from partitions.stack.complaints import Complaints
from partitions.stack.guest_memory import GpaWindows
from partitions.stack.service_budgets import ServiceBudgets
from partitions.stack.stream_answers import StreamAnswers, StreamBus
from partitions.stack.vmbus_ports import FlagAllocator
from partitions.stack.work_for_children import WorkForChildren
from runtime.hypercalls.caller import HypercallPort


@dataclass(slots=True)
class RootResources:
    """The root's, or a partition's with children of its own."""

    hypercalls: HypercallPort
    partition: int  # the parent's id
    event_flags: memoryview  # SIEF page of the parent's VP that serves its children
    nursery: trio.Nursery
    log: Callable[..., None]  # (kind, **fields)
    save: Callable[[], None]  # everything that `to_state` of all guests says
    record: Callable[[int], memoryview]  # a channel's record in the saved state, by its event flag
    seam: Seam
    flags: FlagAllocator = field(default_factory=FlagAllocator)
    windows: GpaWindows = field(default_factory=GpaWindows)
    cpus: tuple[int, ...] = ()  # of the host, for those who serve devices in our stead; none: any
    name: str = "root"  # the parent's
    vp: int = 0  # which of the parent's VPs serves its children: their messages and signals go there
    listeners: dict[int, Callable[[bytes], None]] = field(default_factory=dict)  # of our other message ports
    watchers: list[Callable[[], None]] = field(default_factory=list)  # called when a child changed
    # Of openings, never one twice, whoever of us gives them out: one takes longer than a nanosecond.
    numbers: Iterator[int] = field(default_factory=lambda: count(time.monotonic_ns()))
    # Time, as this stack knows it: a simulator's is its own.
    now_ns: Callable[[], int] = time.monotonic_ns
    sleep: Callable[[float], Awaitable[None]] = trio.sleep
    work_ns: Callable[[], int] = time.thread_time_ns  # processor time of the event loop's thread
    faults: ServerAgent | None = None  # on purpose, in this process; None: nobody can order any
    channel_faults: ChannelFaults | None = None  # on purpose, of channel messages; None: none is armed
    streams: StreamAnswers | None = None  # None: no guest has any
    complaints: Complaints = field(default_factory=Complaints)
    budgets: ServiceBudgets = field(init=False)  # of children with a cap
    work: WorkForChildren = field(init=False)  # for the same
    backings: Backings = field(default_factory=Backings)  # of devices that were added since

    def __post_init__(self) -> None:
        self.budgets = ServiceBudgets(self.hypercalls.get_property)
        self.work = WorkForChildren(self.budgets, self.hypercalls.set_property, self.work_ns)
        self.watchers.append(self.budgets.look)
        capped = CappedTime(self.hypercalls, self.budgets, self.nursery, self.now_ns, self.sleep)
        self.watchers.append(capped.look)

    def ask_for_stream(self, bus: StreamBus, request: ConnectStream) -> None:
        """A guest wants to be connected."""
        if self.streams is None:
            bus.refuse_stream(request)
        else:
            self.streams.asked(bus, request)

    def complain(self, kind: str, guest: str, **fields: object) -> None:
        """Log what a guest can cause as often as it likes."""
        if (left_out := self.complaints.admit(kind, guest, self.now_ns())) is not None:
            more = {"left_out": left_out} if left_out else {}
            self.log(kind, guest=guest, **fields, **more)
