"""A root of today goes on with what a root of format 1 saved, wherever that one died."""

import contextlib
import struct
from collections.abc import Mapping
from typing import Any, Final

import msgpack  # type: ignore[import-untyped]

from bus import channel_messages as messages
from bus.channel_message_codec import ChannelMessage, Side, Version, decode_message
from bus.native import crc32c
from bus.synic import CONTACT_CONNECTION, MESSAGE_CONNECTION
from partitions.stack.guest_memory import WINDOW_PAGES
from partitions.stack.saved_state import HALF_BYTES, PAGE_BYTES, RECORD_BYTES, RECORDS, SavedState
from partitions.stack.vmbus_ports import (
    GUEST_MESSAGE_PORT,
    guest_channel_port,
    root_legacy_message_port,
    root_message_port,
    server_event_port,
)
from runtime.abi import SLOT_PAGES_MAX
from tests.partitions.kept_machine import GUEST, ROOT, Guest, Kept, run
from tests.partitions.test_saved_state import FORMAT_1
from tests.partitions.test_take_over import Undisturbed, boot_passes, undisturbed, without_times

__all__ = ["undisturbed"]  # the fixture

_HALVES_AT: Final = PAGE_BYTES + RECORDS * RECORD_BYTES
_HALF: Final = struct.Struct("<QII")  # sequence, length, checksum
_FORMAT_AT: Final = 8


def save_as_format_1(memory: bytearray, value: Mapping[str, Any]) -> None:
    """In the place of what is saved there: without its format, which stands in the slot's head."""
    struct.pack_into("<I", memory, _FORMAT_AT, 1)
    memory[_HALVES_AT : _HALVES_AT + 2 * HALF_BYTES] = bytes(2 * HALF_BYTES)
    data, sequence = msgpack.packb(value, use_bin_type=True), 1
    at = _HALVES_AT + HALF_BYTES
    memory[at + _HALF.size : at + _HALF.size + len(data)] = data
    _HALF.pack_into(memory, at, sequence, len(data), crc32c(data, crc32c(sequence.to_bytes(8, "little"))))


def as_format_1(value: Mapping[str, Any], sent: list[bytes]) -> dict[str, Any]:
    """What a root of that time would have saved, where one of today saved `value`."""
    received = value["received"].get(root_message_port(GUEST), 0)
    last = [root_message_port(GUEST), sent[received - 1]] if received else []
    return {**FORMAT_1, "guests": [_guest(guest) for guest in value["guests"]], "last_message": last}


def _guest(guest: Mapping[str, Any]) -> dict[str, Any]:
    assert guest["withheld"] == []
    older = {key: part for key, part in guest.items() if key != "withheld"}
    older["offers"] = [
        [relid, device, instance, breaks[0]] for relid, device, instance, breaks in guest["offers"]
    ]
    older["windows"] = {gpadl: window for gpadl, _, window in guest["windows"]}
    older["openings"] = {relid: opening[1:] for relid, opening in guest["openings"].items()}
    return older


def shape(value: object) -> object:
    """Keys and types, so far down as there are keys that are names."""
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {key: shape(part) for key, part in value.items()}
    return type(value)


def test_what_is_written_here_as_format_1_looks_like_what_was_recorded() -> None:
    with contextlib.closing(Kept()) as kept:
        guest = Guest(kept)
        run(kept, guest, boot_passes() + 30)
        older = as_format_1(SavedState(memoryview(kept.saved)).load(), kept.sent)
    assert shape(older) == shape(FORMAT_1)
    assert shape(older["guests"][0]) == shape(FORMAT_1["guests"][0])
    for kind in ("offers", "openings"):
        (ours, *_), (recorded, *_) = (list(_rows(one["guests"][0][kind])) for one in (older, FORMAT_1))
        assert [type(part) for part in ours] == [type(part) for part in recorded]


def _rows(table: Any) -> list[Any]:
    return list(table.values()) if isinstance(table, dict) else list(table)


def test_a_root_of_format_1_may_have_died_before_and_after_each_of_its_hypercalls(
    undisturbed: Undisturbed,
) -> None:
    """Its successor's saves are in today's format; the guest notices nothing."""
    for dies_at in range(boot_passes() + 1, undisturbed.passes + 1):
        with contextlib.closing(Kept()) as kept:
            guest = Guest(kept)
            _, state = run(kept, guest, dies_at)
            assert state is None
            saved = SavedState(memoryview(kept.saved)).load()
            save_as_format_1(kept.saved, as_format_1(saved, kept.sent))
            _, state = run(kept, guest)
            assert guest.heard == undisturbed.guest.heard
            assert kept.posted == undisturbed.posted
            assert kept.ports == undisturbed.ports
            assert not kept.mapped
            assert state is not None
            assert undisturbed.state is not None
            assert without_times(state) == without_times(undisturbed.state)


class _Recorded:
    """The guest of the recorded state: its channel is open. It closes it, lets go of its pages, and leaves."""

    def __init__(self, kept: Kept, saved: Mapping[str, Any]) -> None:
        self._kept, self.heard = kept, list[ChannelMessage]()
        (channel,) = saved["server"]["table"]["channels"]
        self._relid, (self._gpadl, *_) = channel["relid"], channel["gpadls"][0]
        kept.send(messages.CloseChannel(self._relid).encode())
        kept.send(messages.GpadlTeardown(self._relid, self._gpadl).encode())

    @property
    def has_left(self) -> bool:
        return any(isinstance(one, messages.UnloadResponse) for one in self.heard)

    def take(self) -> None:
        while self._kept.taken < len(self._kept.posted):
            payload = self._kept.posted[self._kept.taken]
            self._kept.taken += 1
            self.heard.append(decode_message(payload, Side.HOST, Version.V6_0))
            if isinstance(self.heard[-1], messages.GpadlTorndown):
                self._kept.send(messages.Unload().encode())


def test_an_open_channel_of_the_recorded_machine_is_served_closed_and_given_back() -> None:
    """By a first successor, or by a second one where the first dies before or after any of its hypercalls."""
    passes = _go_on_from_the_recorded(None)
    assert passes >= 30
    for dies_at in range(1, passes + 1):
        _go_on_from_the_recorded(dies_at)


def _go_on_from_the_recorded(dies_at: int | None) -> int:
    """At how many moments the last root could have died."""
    saved = FORMAT_1["guests"][0]
    (channel,) = saved["server"]["table"]["channels"]
    ((gpadl, relid, _, ((_, byte_count, first_gpfn),)),) = channel["gpadls"]
    ((flag, connection),) = saved["openings"].values()
    assert saved["partition"] == GUEST
    with contextlib.closing(Kept(pages=byte_count // PAGE_BYTES)) as kept:
        messaging = {
            (ROOT, root_message_port(GUEST)),
            (ROOT, root_legacy_message_port(GUEST)),
            (GUEST, GUEST_MESSAGE_PORT),
        }
        events = {(ROOT, server_event_port(flag)), (GUEST, guest_channel_port(relid))}
        kept.ports |= messaging | events
        kept.connections |= {
            (GUEST, CONTACT_CONNECTION),
            (GUEST, MESSAGE_CONNECTION),
            (ROOT, root_message_port(GUEST)),
        }
        kept.connections |= {(GUEST, connection), (ROOT, server_event_port(flag))}
        kept.mapped[saved["windows"][gpadl] * WINDOW_PAGES + SLOT_PAGES_MAX] = first_gpfn
        kept.posted += [b""] * saved["posted"]
        kept.taken = len(kept.posted)
        SavedState(memoryview(kept.saved)).format()
        save_as_format_1(kept.saved, FORMAT_1)
        guest = _Recorded(kept, saved)
        if dies_at is not None:
            assert run(kept, guest, dies_at)[1] is None
        passes, _ = run(kept, guest)
        assert [type(one) for one in guest.heard] == [
            messages.GpadlTorndown,
            messages.UnloadResponse,
        ]
        assert kept.ports == messaging
        assert not kept.mapped
    return passes
