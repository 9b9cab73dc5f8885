"""The host's side of GPADLs: put together, mapped, taken away.

A device may hold pages, so they are given and taken by actions, and each has an answer:

    GPADL_HEADER, BODY... -> MapGpadl   -> GpadlMapped   -> GPADL_CREATED
    GPADL_TEARDOWN        -> UnmapGpadl -> GpadlUnmapped -> GPADL_TORNDOWN

A channel that is withdrawn or forgotten dooms its GPADLs: they get a fate at once, and are unmapped as soon as
the device has stopped (`sweep`).
"""

from typing import Any, Final

from bus import channel_messages as messages
from bus.channel_actions import Action, GpadlMapped, GpadlUnmapped, MapGpadl, SendMessage, UnmapGpadl
from bus.channel_messages import STATUS_FAILURE, STATUS_SUCCESS
from bus.channel_states import ENTANGLED_STATES, WITHDRAWN_STATES
from bus.channel_table import ChannelTable, GpadlFate, GpadlStage, HostChannel, HostGpadl
from bus.gpadl import AssembledGpadl, GpadlAssembler, GpadlRefused, UnknownGpadl
from bus.memory import PFN_BYTES
from bus.protocol_errors import LocalProtocolError, RemoteProtocolError

MAX_GPADLS: Final = 4096  # of one guest, those in progress included
MAX_CONNECTION_GPADL_PAGES: Final = 1 << 18  # of one guest: 1 GiB of rings and buffers


class GpadlServer:
    """All GPADLs of one guest. The channels are the caller's to find and to check."""

    __slots__ = ("_assembler", "_table")

    def __init__(self, table: ChannelTable, in_progress: list[Any] | None = None) -> None:
        """`in_progress`: from `to_state`."""
        self._table = table
        self._assembler = GpadlAssembler.from_state(in_progress or [])

    # -- the guest's messages

    def header(self, message: messages.GpadlHeader) -> list[Action]:
        """For a channel that the guest knows."""
        try:
            self._check_limits(message)
            return self._assembled(self._assembler.begin(message))
        except GpadlRefused as refusal:
            return [_created(refusal.relid, refusal.gpadl, STATUS_FAILURE)]

    def body(self, message: messages.GpadlBody) -> list[Action]:
        try:
            return self._assembled(self._assembler.extend(message))
        except UnknownGpadl as error:
            raise RemoteProtocolError(str(error)) from error
        except GpadlRefused as refusal:
            return [_created(refusal.relid, refusal.gpadl, STATUS_FAILURE)]

    def _check_limits(self, message: messages.GpadlHeader) -> None:
        relid, gpadl = message.relid, message.gpadl
        if self._table.gpadl_owner(gpadl) is not None:
            raise GpadlRefused(relid, gpadl, "its handle is in use")
        if self._table.gpadl_count + len(self._assembler) >= MAX_GPADLS:
            raise GpadlRefused(relid, gpadl, f"{MAX_GPADLS} GPADLs are there")
        pages = self._table.pages + self._assembler.pages + message.range_buffer_bytes // PFN_BYTES
        if pages > MAX_CONNECTION_GPADL_PAGES:
            raise GpadlRefused(relid, gpadl, f"{pages} pages; {MAX_CONNECTION_GPADL_PAGES} are possible")

    def _assembled(self, whole: AssembledGpadl | None) -> list[Action]:
        if whole is None:
            return []
        channel = self._table.get(whole.relid)
        assert channel is not None  # a channel that is let go of takes its lists in progress with it
        if channel.state in WITHDRAWN_STATES:
            # The guest has not read the rescind yet. What it may still do with the handle is tear it down.
            self._table.add_gpadl(channel, HostGpadl(whole.gpadl, (), GpadlStage.DEAD, GpadlFate.DEAD))
            return [_created(whole.relid, whole.gpadl, STATUS_SUCCESS)]
        self._table.add_gpadl(channel, HostGpadl(whole.gpadl, whole.ranges))
        return [MapGpadl(whole.relid, whole.gpadl, whole.ranges)]

    def teardown(self, channel: HostChannel, message: messages.GpadlTeardown) -> list[Action]:
        """RemoteProtocolError, and no reply, unless GPADL_CREATED said yes and nothing has taken it back."""
        gpadl = channel.gpadls.get(message.gpadl)
        if (
            gpadl is None
            or gpadl.stage is GpadlStage.MAPPING
            or gpadl.fate in (GpadlFate.TORNDOWN, GpadlFate.FORGET)
        ):
            raise RemoteProtocolError(
                f"GPADL {message.gpadl:#x} of channel {channel.relid} cannot be torn down"
            )
        if channel.uses_ring(message.gpadl):
            raise RemoteProtocolError(f"GPADL {message.gpadl:#x}: channel {channel.relid} is open on it")
        if gpadl.stage is GpadlStage.DEAD:
            self._table.remove_gpadl(channel, message.gpadl)
            return [_torndown(message.gpadl)]
        gpadl.fate = GpadlFate.TORNDOWN
        return self.sweep(channel)

    # -- the owner's reports

    def mapped(self, completion: GpadlMapped) -> tuple[HostChannel, list[Action]]:
        channel, gpadl = self._pending(completion.gpadl, GpadlStage.MAPPING)
        answered = gpadl.fate is GpadlFate.LIVE
        if completion.status == STATUS_SUCCESS:
            gpadl.stage = GpadlStage.MAPPED
        else:
            self._table.remove_gpadl(channel, gpadl.gpadl)
        return channel, [_created(channel.relid, gpadl.gpadl, completion.status)] if answered else []

    def unmapped(self, completion: GpadlUnmapped) -> tuple[HostChannel, list[Action]]:
        channel, gpadl = self._pending(completion.gpadl, GpadlStage.UNMAPPING)
        if gpadl.fate is GpadlFate.DEAD:
            self._table.bury_gpadl(gpadl)
            return channel, []
        self._table.remove_gpadl(channel, gpadl.gpadl)
        return channel, [_torndown(gpadl.gpadl)] if gpadl.fate is GpadlFate.TORNDOWN else []

    def _pending(self, handle: int, stage: GpadlStage) -> tuple[HostChannel, HostGpadl]:
        channel = self._table.gpadl_owner(handle)
        if channel is None or (gpadl := channel.gpadls[handle]).stage is not stage:
            raise LocalProtocolError(f"GPADL {handle:#x} is not in {stage.name}")
        return channel, gpadl

    # -- ends of channels

    def withdraw(self, channel: HostChannel) -> list[Action]:
        """The device goes away: its GPADLs die, and who waits for one is told."""
        actions: list[Action] = []
        for gpadl in tuple(channel.gpadls.values()):
            if gpadl.fate is not GpadlFate.LIVE:
                continue
            if gpadl.stage is GpadlStage.MAPPING:
                gpadl.fate = GpadlFate.FORGET
                actions.append(_created(channel.relid, gpadl.gpadl, STATUS_FAILURE))
            else:
                gpadl.fate = GpadlFate.DEAD
        return actions

    def forget(self, channel: HostChannel) -> None:
        """The guest has let go of the channel, and so of its handles."""
        self._assembler.drop_channel(channel.relid)
        for gpadl in tuple(channel.gpadls.values()):
            gpadl.fate = GpadlFate.FORGET
            if gpadl.stage is GpadlStage.DEAD:
                self._table.remove_gpadl(channel, gpadl.gpadl)

    def sweep(self, channel: HostChannel) -> list[Action]:
        """Unmap what is doomed, unless the device may still be using it."""
        if channel.state in ENTANGLED_STATES:
            return []
        actions: list[Action] = []
        for gpadl in channel.gpadls.values():
            if gpadl.stage is GpadlStage.MAPPED and gpadl.fate is not GpadlFate.LIVE:
                gpadl.stage = GpadlStage.UNMAPPING
                actions.append(UnmapGpadl(channel.relid, gpadl.gpadl))
        return actions

    def to_state(self) -> list[list[int | bytes]]:
        """What is in progress; the rest stands in the table."""
        return self._assembler.to_state()


def _created(relid: int, gpadl: int, status: int) -> SendMessage:
    return SendMessage(messages.GpadlCreated(relid, gpadl, status).encode())


def _torndown(gpadl: int) -> SendMessage:
    return SendMessage(messages.GpadlTorndown(gpadl).encode())
