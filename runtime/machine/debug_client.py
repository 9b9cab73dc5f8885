"""The reading side of a machine's debug port and flight recorder. It asks nobody but the hypervisor."""

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from runtime import codec
from runtime.exits import CommandError
from runtime.hypervisor.recorded import EFFECT_NAMES
from runtime.hypervisor.recorder import RECORDER_BYTES, Event, RecordingError, read_events, read_partitions
from runtime.machine.debug_access import NO_ANSWER_MS
from runtime.machine.rundir import MachineFolder


class HypervisorSilent(Exception):
    """The broker hangs, is stopped or is gone; the text says what was tried."""


class DebugClient:
    """One connection. Use it in a `with` block."""

    def __init__(self, folder: MachineFolder) -> None:
        """Raises: HypervisorSilent."""
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.settimeout(NO_ANSWER_MS / 1000)
        try:
            self._socket.connect(str(folder.debug_path))
        except OSError as error:
            self._socket.close()
            raise HypervisorSilent(f"its debug port cannot be reached: {error}") from error

    def __enter__(self) -> "DebugClient":
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def ask(self, table: str, after: int = 0) -> dict[str, Any]:
        """One page. Raises: HypervisorSilent."""
        try:
            codec.send_message(self._socket, [table, {"after": after}])
            received = codec.receive_message(self._socket, fds_max=0)
        except (OSError, codec.DecodeError) as error:
            raise HypervisorSilent(
                f"it does not answer within {NO_ANSWER_MS} ms ({error or type(error).__name__})"
            ) from error
        match received:
            case ([str() as answered, dict() as values], _) if answered == table:
                return values
            case ([_, {"reason": reason}], _):
                raise HypervisorSilent(str(reason))
        raise HypervisorSilent("it closed the connection")

    def rows(self, table: str, key: str) -> Iterator[dict[str, Any]]:
        """All pages. `key`: of the column to go on from."""
        after, more = 0, True
        while more:
            page = self.ask(table, after)
            yield from page["rows"]
            more = bool(page["more"] and page["rows"])
            after = page["rows"][-1][key] if page["rows"] else 0


def read_recording(path: Path) -> bytes:
    """Of a machine that runs, or a post-mortem file. Raises: CommandError."""
    try:
        with path.open("rb") as file:
            data = file.read(RECORDER_BYTES)
    except OSError as error:
        raise CommandError(f"{path}: {error.strerror}") from error
    try:
        read_events(data, {})
    except RecordingError as error:
        raise CommandError(f"{path} is no flight recording: {error}") from error
    return data


def recorded_events(data: bytes, count: int) -> list[Event]:
    return read_events(data, EFFECT_NAMES)[-count:]


def recorded_partitions(data: bytes) -> list[dict[str, object]]:
    return read_partitions(data)
