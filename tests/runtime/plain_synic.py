"""The SynIC's pages as the hypervisor's state machine sees them in tests, and what a guest takes from them."""

from __future__ import annotations

import struct

from runtime.hypervisor.effects import (
    Page,
)

_SLOT_BYTES = 256  # of the SIM page
_HEADER = struct.Struct("<IBBHQ")  # type, payload bytes, flags, reserved, sender
_PENDING = 1


class PlainSynic:
    """The SynIC's page rules without atomics: nobody else touches these pages."""

    def synic_post(
        self, sim_page: Page, sint: int, message_type: int, sender: int, payload: bytes, /
    ) -> bool:
        at = sint * _SLOT_BYTES
        if _HEADER.unpack_from(sim_page, at)[0]:
            sim_page[at + 5] |= _PENDING
            return False
        sim_page[at + 16 : at + 16 + len(payload)] = payload
        _HEADER.pack_into(sim_page, at, message_type, len(payload), 0, 0, sender)
        return True

    def flag_set(self, sief_page: Page, flag: int, /) -> bool:
        bit = 1 << flag % 8
        was_clear = not sief_page[flag // 8] & bit
        sief_page[flag // 8] |= bit
        return was_clear

    def flag_take(self, sief_page: Page, flag: int, /) -> bool:
        bit = 1 << flag % 8
        was_set = bool(sief_page[flag // 8] & bit)
        sief_page[flag // 8] &= ~bit
        return was_set


def take_message(sim_page: Page, sint: int) -> tuple[int, int, bytes, bool] | None:
    """The guest's side: (type, sender, payload, whether end-of-message is owed)."""
    at = sint * _SLOT_BYTES
    message_type, length, flags, _, sender = _HEADER.unpack_from(sim_page, at)
    if not message_type:
        return None
    payload = bytes(sim_page[at + 16 : at + 16 + length])
    struct.pack_into("<I", sim_page, at, 0)
    return message_type, sender, payload, bool(flags & _PENDING)
