"""Events that a guest can cause as often as it likes: told so often, and from there on counted.

An event costs whoever tells it, the platform, and everybody whose own events it pushes out; it costs a guest one
message. No clock: the time comes in.
"""

from dataclasses import dataclass, field
from typing import Final

COMPLAINTS_PER_SECOND: Final = 20  # of one kind about one guest
_SECOND_NS: Final = 1_000_000_000


@dataclass(slots=True)
class _Account:
    since_ns: int = -_SECOND_NS
    told: int = 0  # in the second that began then
    left_out: int = 0  # since one was told


@dataclass(slots=True)
class Complaints:
    """Of one stack, about all its guests."""

    _accounts: dict[tuple[str, str], _Account] = field(default_factory=dict)

    def admit(self, kind: str, guest: str, now_ns: int) -> int | None:
        """Whether to tell one more: how many were left out since the last that was told. None: leave it out, too."""
        account = self._accounts.setdefault((kind, guest), _Account())
        if now_ns - account.since_ns >= _SECOND_NS:
            account.since_ns, account.told = now_ns, 0
        if account.told >= COMPLAINTS_PER_SECOND:
            account.left_out += 1
            return None
        account.told += 1
        left_out, account.left_out = account.left_out, 0
        return left_out
