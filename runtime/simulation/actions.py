"""What a schedule is made of, and how a schedule is kept in a file.

Partitions are named by labels that the schedule itself gives out, never by ids: an action that names a partition which
was not created does nothing, so any part of a schedule is a schedule.
"""

from __future__ import annotations

import enum
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from runtime.exits import CommandError

ROOT_LABEL: Final = "root"
SCHEDULE_BYTES_MAX: Final = 64 << 20
_FORMAT: Final = "partvisor schedule 1"
_BYTES_KEY: Final = "hex"  # JSON has no bytes: {"hex": "00ff"}


class ActionKind(enum.Enum):
    """Who moves: a partition by a hypercall, its guest, the host below it, the platform, time."""

    CALL = "call"
    RECEIVE = "receive"  # the guest empties its message slots and event flags; number: VP
    STARTED = "started"  # the spawn that was asked for succeeded
    EXITED = "exited"  # a process ended, or could not be spawned; number: exit code
    KILL = "kill"  # the platform pulls the plug
    REBOOT = "reboot"  # the platform has every partition end, and a new root begin
    ADVANCE = "advance"  # number: milliseconds
    END = "end"  # the machine is taken down, and everything must come back


class Action(NamedTuple):
    """One step. A text among a call's arguments is a label."""

    kind: ActionKind
    who: str = ROOT_LABEL
    number: int = 0
    code: object = 0  # of the call; any value, as a hostile caller may send any
    args: Any = {}  # noqa: RUF012 (nobody changes it)
    files: int = 0  # descriptors that come with the call
    fail_at: int = 0  # the host refuses the n-th resource that the call asks for; 0: none
    label: str = ""  # given to the partition that the call creates

    def to_json(self) -> dict[str, Any]:
        """Without what is as usual."""
        row = {"kind": self.kind.value, "who": self.who}
        for name, usual in self._field_defaults.items():
            value = getattr(self, name)
            if name not in row and (value != usual or type(value) is not type(usual)):
                row[name] = _to_json(value)
        return row

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Action:
        """Raises: KeyError, TypeError, ValueError: not an action."""
        values = {key: _from_json(value) for key, value in row.items()}
        values["kind"] = ActionKind(values["kind"])
        return cls(**values)


def _to_json(value: Any) -> Any:
    if isinstance(value, bytes):
        return {_BYTES_KEY: value.hex()}
    if isinstance(value, dict):
        return {key: _to_json(element) for key, element in value.items()}
    if isinstance(value, list | tuple):
        return [_to_json(element) for element in value]
    return value


def _from_json(value: Any) -> Any:
    if isinstance(value, dict):
        if set(value) == {_BYTES_KEY}:
            return bytes.fromhex(value[_BYTES_KEY])
        return {key: _from_json(element) for key, element in value.items()}
    if isinstance(value, list):
        return [_from_json(element) for element in value]
    return value


def save_schedule(path: Path, actions: Sequence[Action], about: Mapping[str, object]) -> None:
    """A JSON line about it, then one an action."""
    lines = [json.dumps({"format": _FORMAT, **about}), *(json.dumps(action.to_json()) for action in actions)]
    path.write_text("\n".join(lines) + "\n")


def load_schedule(path: Path) -> list[Action]:
    """Raises: CommandError: it cannot be read, or is none."""
    try:
        if path.stat().st_size > SCHEDULE_BYTES_MAX:
            raise CommandError(f"{path}: more than {SCHEDULE_BYTES_MAX} bytes; is it a schedule?")
        head, *lines = path.read_text().splitlines()
        if json.loads(head).get("format") != _FORMAT:
            raise ValueError(f"its first line does not say {_FORMAT!r}")
        return [Action.from_json(json.loads(line)) for line in lines]
    except OSError as error:
        raise CommandError(f"{path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CommandError(f"{path} is not a schedule: {error}") from error
