"""From the console line into the event log: each record under the name of the partition that sent it."""

import contextlib
import socket
from typing import Final

import trio

from runtime.machine.console import RAW, ConsoleRecord, console_pair, read_record
from runtime.machine.events import EventLog
from runtime.reserved_names import ROOT

_KIND_CHARACTERS_MAX: Final = 64
_LINE_CHARACTERS_MAX: Final = 16 * 1024  # of what comes in pieces
_ARGUMENTS: Final = frozenset({"self", "kind", "partition"})  # of EventLog.append: no field may be called so
_UNNAMED_RECORDS_MAX: Final = 4_096  # of processes whose name the broker has not said yet


def _kind(kind: str, name: str | None) -> str:
    """What a partition calls its record stays within `guest.`: only the root speaks for the machine."""
    if not kind.isprintable() or len(kind) > _KIND_CHARACTERS_MAX:
        kind = "garbage"
    return kind if name == ROOT or kind == "output" or kind.startswith("guest.") else f"guest.{kind}"


class ConsoleLog:
    """The reading end. `writer` is for the machine's processes to inherit."""

    def __init__(self, log: EventLog) -> None:
        self._log = log
        self._reader, self.writer = console_pair()
        self._names: dict[int, str] = {}  # by pid
        self._holders: set[int] = set()  # pids of processes that several partitions live in
        self._unnamed: list[ConsoleRecord] = []
        self._pieces: dict[int, str] = {}  # of a line that has not ended yet, by pid

    def name(self, pid: int, name: str) -> None:
        """From now on, and for what has waited for it, records of this process are that partition's."""
        self._names[pid] = name
        waiting, self._unnamed = self._unnamed, []
        for record in waiting:
            self._publish(record)

    def holds_partitions(self, pid: int) -> None:
        """The hypervisor's process: each driver that lives there says which it is. The kernel could not tell us."""
        self._holders.add(pid)

    async def serve(self) -> None:
        """Until cancelled."""
        while True:
            await trio.lowlevel.wait_readable(self._reader)
            self.drain()

    def drain(self) -> None:
        """Take in what is there: the last words of a process come before the event of its death."""
        with contextlib.suppress(BlockingIOError):
            while (record := read_record(self._reader)) is not None:
                self._publish(record)

    def _publish(self, record: ConsoleRecord) -> None:
        name = self._names.get(record.pid)
        if record.pid in self._holders and record.speaks_for not in (None, ROOT):
            name = record.speaks_for
        if name is None and len(self._unnamed) < _UNNAMED_RECORDS_MAX:
            self._unnamed.append(record)
            return
        if record.kind == RAW:
            self._join(record, name)
            return
        fields = dict(record.fields)
        if name == ROOT and record.kind == "output" and isinstance(fields.get("partition"), str):
            name = str(
                fields.pop("partition")
            )  # what that one said to a serial port, which the root emulates
        for taken in _ARGUMENTS & fields.keys():
            fields[f"{taken}_"] = fields.pop(taken)
        self._log.append(_kind(record.kind, name), name, **fields)

    def _join(self, record: ConsoleRecord, name: str | None) -> None:
        """What an interpreter says when it crashes comes in pieces; a line is an event."""
        *lines, rest = (self._pieces.pop(record.pid, "") + str(record.fields.get("text", ""))).split("\n")
        if len(rest) > _LINE_CHARACTERS_MAX:
            lines, rest = [*lines, rest], ""
        for line in lines:
            self._log.append("output", name, stream="stderr", text=line[:_LINE_CHARACTERS_MAX])
        if rest and record.pid in self._names:  # of somebody that we know to be there
            self._pieces[record.pid] = rest

    def close(self) -> None:
        ends: tuple[socket.socket, ...] = (self._reader, self.writer)
        for end in ends:
            end.close()
