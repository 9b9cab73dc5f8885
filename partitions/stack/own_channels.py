"""The channels of one guest that are served in this process, each by a thread of its own."""

import contextlib
from typing import Any

import trio

from bus import tracing
from bus.channel_messages import STATUS_SUCCESS
from bus.native import GpaMap
from bus.packets import GpaRange
from partitions.stack.back_off import describe
from partitions.stack.channel_client import ChannelClient, MultiChannelService, manner_of, open_device
from partitions.stack.channel_host import ChannelListener, Opening, OpenRequest
from partitions.stack.channel_ports import ChannelPorts, claim_doorbells, remove_ports
from partitions.stack.guest_memory import GuestMemory
from partitions.stack.served_channel import ServedChannel, Service, WorkerEnd, clear_record
from partitions.stack.stack_resources import RootResources
from partitions.stack.vmbus_ports import FlagAllocator, server_event_port


class OwnChannels:
    """A ChannelHost. Its threads are the only ones that touch rings and pages."""

    def __init__(self, root: RootResources, listener: ChannelListener) -> None:
        self._root, self._listener = root, listener
        self.memory = GuestMemory(root.hypercalls, root.windows, listener.partition)
        self._channels: dict[int, tuple[ServedChannel, OpenRequest]] = {}
        self._closing: set[ServedChannel] = set()  # whose threads are being stopped

    @property
    def flags(self) -> FlagAllocator:
        return self._root.flags

    def _ports(self, request: OpenRequest) -> ChannelPorts:
        root, guest = self._root, self._listener.partition
        flag, route = request.opening.flag, request.plan.route
        return ChannelPorts(root.hypercalls, root.partition, guest, request.action, flag, route, root.vp)

    def open(self, request: OpenRequest) -> int:
        ports = self._ports(request)
        with ports.made_anew():
            clear_record(self._root.record(ports.flag))
            self._attach(request, ports)
        self.serve(request.relid)
        return STATUS_SUCCESS

    def adopt(self, request: OpenRequest) -> None:
        self._attach(request, self._ports(request))

    def waits_to_be_served(self, relid: int) -> bool:
        return relid in self._channels

    def _attach(self, request: OpenRequest, ports: ChannelPorts) -> None:
        root, action = self._root, request.action
        doorbells = claim_doorbells(root.hypercalls, ports.flag, ports.route, silent=ports.silent)
        gpa_map = GpaMap()
        self.memory.add_slots(action.relid, gpa_map)

        def find_buffer(gpadl: int) -> GpaRange:
            """Lent when the channel was opened, or since."""
            self.memory.add_slots(action.relid, gpa_map)
            return self.memory.buffer(action.relid, gpadl)

        client = ChannelClient(self._listener.partition, find_buffer)
        token = trio.lowlevel.current_trio_token()

        def ask(count: int) -> None:
            news = request.relid, request.opening.number, count
            with contextlib.suppress(trio.RunFinishedError):
                token.run_sync_soon(self._listener.asked_for_sub_channels, *news)

        def open_service(served: ServedChannel) -> Service:
            service = open_device(
                request.device, client, served, gpa_map, root.seam, root.faults, request.sub_channel
            )
            if isinstance(service, MultiChannelService):
                service.sub_channel_requests.tell(ask)
            return service

        try:
            rings = self.memory.rings(action.ring_gpadl, action.downstream_page_offset)
            channel = ServedChannel(
                doorbells,
                rings,
                request.plan.waiting,
                root.event_flags,
                root.record(ports.flag),
                root.seam,
                open_service,
                tracing.of_server(
                    self._listener.partition,
                    action.relid,
                    root.partition,
                    server_event_port(ports.flag),
                    request.device.name,
                ),
                budget=root.budgets.of(self._listener.partition),
                **manner_of(request.device),
            )
        except BaseException:
            doorbells.close()
            raise
        self._channels[action.relid] = channel, request

    def was_executing(self, relid: int) -> bool:
        return self._channels[relid][0].was_executing

    def replay(self, relid: int) -> bool:
        return self._channels[relid][0].replay()

    def serve(self, relid: int) -> None:
        """Start the channel's thread."""
        channel, request = self._channels[relid]
        token = trio.lowlevel.current_trio_token()

        def lost(end: WorkerEnd) -> None:
            with self._root.work.of(self._listener.partition):
                self._listener.lost(relid, request.opening.number, end.failed, end.reason)

        def on_end(end: WorkerEnd) -> None:
            with contextlib.suppress(trio.RunFinishedError):
                token.run_sync_soon(lost, end)

        channel.start(f"{self._listener.name}.{relid}", on_end)

    def close(self, relid: int, opening: Opening) -> None:
        self._root.nursery.start_soon(self._close, relid, opening)

    async def _close(self, relid: int, opening: Opening) -> None:
        channel, _ = self._channels.pop(relid, (None, None))
        if channel is not None:
            self._closing.add(channel)
            while not await trio.to_thread.run_sync(channel.stop, abandon_on_cancel=True):
                # Its backend does not come back; the pages stay mapped, the ports stay taken.
                self._root.log("vmbus.channel_stuck", guest=self._listener.name, relid=relid)
            self._closing.discard(channel)
            channel.release()
        with self._root.work.of(self._listener.partition):
            # A predecessor may have been closing it: its thread died with it, its ports did not.
            self.bury(relid, opening)
            self._listener.closed(relid, opening.number)

    def bury(self, relid: int, opening: Opening) -> None:
        root, guest = self._root, self._listener.partition
        remove_ports(root.hypercalls, root.partition, guest, relid, opening.connection_id, opening.flag)

    def find_stuck(self, stuck_ms: int) -> int | None:
        return next(
            (relid for relid, (channel, _) in self._channels.items() if channel.is_stuck(stuck_ms)), None
        )

    def is_busy(self, relid: int) -> bool:
        return (found := self._channels.get(relid)) is not None and found[0].channel.has_work

    def workers(self) -> list[ServedChannel]:
        return [*(channel for channel, _ in self._channels.values()), *self._closing]

    def statistics(self, relid: int) -> dict[str, Any]:
        if (found := self._channels.get(relid)) is None:
            return {"served_by": [self._root.name]}
        channel = found[0]
        resting = 0 if channel.resting else None
        return {"served_by": [self._root.name], **describe(channel.back_off, resting), **channel.statistics()}
