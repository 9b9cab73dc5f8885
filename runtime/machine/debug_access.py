"""What the hypervisor's debug port, flight recorder and trace need from the platform: a socket, and memory that stays.

    FOLDER/debug       a listening SEQPACKET socket; the broker alone serves it
    FOLDER/recorder    a link to the flight recorder's memory, among the platform's descriptors

The link leads to anonymous memory: it can be read while every process of the machine is stopped, and nothing of it is
left when they are gone.
"""

import contextlib
import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

from runtime.hypervisor.debug_port import CLIENTS_MAX
from runtime.hypervisor.recorder import RECORDER_BYTES
from runtime.machine.events import EventLog
from runtime.machine.private_socket import listen_at
from runtime.machine.process import Descriptor
from runtime.machine.rundir import MachineFolder
from runtime.machine.trace import MachineTrace


@dataclass(slots=True)
class DebugAccess:
    """The platform's ends."""

    recorder: BinaryIO
    listener: socket.socket
    trace: MachineTrace | None = None

    def of_broker(self) -> dict[str, Descriptor]:
        """What the broker is executed with, by option."""
        traced: dict[str, Descriptor] = {} if self.trace is None else {"--trace-fd": self.trace}
        return {"--debug-fd": self.listener, "--recorder-fd": self.recorder, **traced}

    def of_successor(self) -> dict[str, int]:
        """Trace memory of each later process of the root, by name."""
        return {} if self.trace is None else self.trace.of_root()

    def read_recorder(self) -> bytes:
        return os.pread(self.recorder.fileno(), RECORDER_BYTES, 0)

    def write_post_mortem(self, path: Path, log: EventLog) -> None:
        """Keep the recording for `partvisor debug --post-mortem`. That it cannot be kept is an event, no more."""
        try:
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            with open(fd, "wb") as file:
                file.write(self.read_recorder())
        except OSError as error:
            log.append("machine.no_post_mortem", reason=str(error))
        else:
            log.append("machine.post_mortem", path=str(path))


@contextlib.contextmanager
def debug_access(folder: MachineFolder, trace: MachineTrace | None = None) -> Iterator[DebugAccess]:
    """Make both in the machine's folder, and remove them."""
    recorder_fd = os.memfd_create("flight-recorder", os.MFD_CLOEXEC)
    with (
        open(recorder_fd, "r+b", buffering=0) as recorder,
        listen_at(folder.debug_path, CLIENTS_MAX, socket.SOCK_SEQPACKET) as listener,
    ):
        os.ftruncate(recorder_fd, RECORDER_BYTES)
        folder.recorder_path.symlink_to(f"/proc/{os.getpid()}/fd/{recorder_fd}")
        try:
            yield DebugAccess(recorder, listener, trace)
        finally:
            for path in (folder.recorder_path, folder.debug_path):
                path.unlink(missing_ok=True)


NO_ANSWER_MS: Final = 1_000  # after which the broker is taken for hung
