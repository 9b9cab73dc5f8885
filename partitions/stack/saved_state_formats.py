"""Formats of the saved state's value, and how an older one becomes the newest.

A reader takes two formats back: each is a function that makes the next one of it, and a test keeps a value that was
really saved in each. One format forward is read as it stands: what it adds is not looked at. So a key may be added
without a new format; a key that changes its meaning, or is needed, makes one.

    1   everything in the root
    2   driver partitions: `drivers`; an opening has a number, a window its channel, what is withheld is listed;
        messages are counted (`received`) rather than compared
"""

from collections.abc import Callable, Mapping
from typing import Any, Final

FORMAT: Final = 2
OLDEST_FORMAT: Final = 1  # two back, once there are as many

Value = dict[str, Any]


class UnknownFormat(Exception):
    """Older than OLDEST_FORMAT. The text says which."""


def migrate(version: int, value: Value) -> Value:
    """The value as FORMAT has it; `version`: what it was saved as. Raises UnknownFormat."""
    if version < OLDEST_FORMAT:
        raise UnknownFormat(f"format {version}; {OLDEST_FORMAT} is the oldest that can be read")
    for step in range(version, FORMAT):
        value = _STEPS[step](value)
    return value


def _from_1(value: Value) -> Value:
    return {
        **value,
        "machine": {"architecture": "microkernelized", **value["machine"]},
        "guests": [_guest_from_1(guest) for guest in value["guests"]],
        "drivers": [],
        "received": {},  # what was done is known of the last message alone: `last_message`
    }


def _guest_from_1(guest: Value) -> Value:
    channels = {
        gpadl: channel["relid"]
        for channel in guest["server"]["table"]["channels"]
        for gpadl, *_ in channel["gpadls"]
    }
    return {
        **guest,
        "offers": [
            [relid, device, instance, [broken, None]] for relid, device, instance, broken in guest["offers"]
        ],
        "withheld": [],
        "windows": [
            [gpadl, channels[gpadl], window]
            for gpadl, window in guest["windows"].items()
            if gpadl in channels
        ],
        # No number is ever as small again.
        "openings": {relid: [relid, *opening] for relid, opening in guest["openings"].items()},
    }


_STEPS: Final[Mapping[int, Callable[[Value], Value]]] = {1: _from_1}

assert set(_STEPS) == set(range(OLDEST_FORMAT, FORMAT))
