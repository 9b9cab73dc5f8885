"""The configured partitions, as the broker's events tell of them: who runs, who has ended and how, who never began."""

from collections.abc import Sequence
from dataclasses import dataclass

from runtime.abi import ExitStatus


@dataclass(slots=True)
class Member:
    name: str  # its path: "outer/inner"
    pid: int = 0  # 0: it has not started
    exit: ExitStatus | None = None
    is_saved: bool = False  # it was ended because it can go on later: no failure


class Roster:
    """Of one machine. Partitions that the config does not name, which others created, are remembered, too."""

    def __init__(self, configured: Sequence[str]) -> None:
        self._configured = [Member(path) for path in configured]
        self._members = {member.name: member for member in self._configured}

    def forget(self) -> None:
        """The machine begins again: nobody has started yet."""
        self.__init__([member.name for member in self._configured])  # type: ignore[misc]

    def started(self, name: str, pid: int) -> None:
        member = self._members.setdefault(name, Member(name))
        member.pid, member.exit, member.is_saved = pid, None, False

    def exited(self, name: str, status: ExitStatus) -> None:
        self._members.setdefault(name, Member(name)).exit = status

    def saved(self, name: str) -> None:
        """It is about to be ended."""
        self._members.setdefault(name, Member(name)).is_saved = True

    @property
    def exits(self) -> dict[str, ExitStatus]:
        return {member.name: member.exit for member in self._members.values() if member.exit}

    def missing(self, below: str | None = None) -> list[str]:
        """Configured ones that have not started; with `below`, only those under that one."""
        return [
            member.name
            for member in self._configured
            if not member.pid and (below is None or member.name.startswith(f"{below}/"))
        ]

    @property
    def have_all_ended(self) -> bool:
        """False where nobody was configured: such a machine runs until it is stopped."""
        return bool(self._configured) and all(member.exit is not None for member in self._configured)

    @property
    def failures(self) -> list[str]:
        """Of configured ones: who ended otherwise than with exit code 0, and how."""
        return [
            f"{member.name}: {member.exit}"
            for member in self._configured
            if member.exit and member.exit.code != 0 and not member.is_saved
        ]
