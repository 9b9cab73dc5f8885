"""A guest's TAP joined to its network adapter: ordinary programs in the guest's namespace use the network unmodified.

    with partition.open_tap() as tap:
        code, output = tap.run(["ping", "-c", "3", "10.0.0.2"], timeout_s=10)

One thread moves frames both ways. What either side has no room for is dropped and counted, as on a wire.
"""

import contextlib
import os
import select
import socket
import threading
from collections.abc import Sequence
from typing import Final

from partitions.net.adapter import NetAdapter
from partitions.net.errors import NetError
from partitions.net.frames import ETHERNET_HEADER_BYTES
from partitions.programs.client import Program, run

FRAMES_AT_ONCE: Final = 64
SEND_PATIENCE_S: Final = 0.05  # for a server that takes nothing; then what waits is dropped
_FRAME_BYTES_MAX: Final = 65_535


class GuestTap:
    """Owns neither the adapter nor the descriptors."""

    def __init__(self, nic: NetAdapter, tap_fd: int, runner: socket.socket) -> None:
        self.nic: Final = nic
        self._tap_fd, self._runner = tap_fd, runner
        self._stop_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._stopping = False
        self.frames_out = self.frames_in = self.dropped_out = self.dropped_in = 0
        self.failure: NetError | None = None  # the adapter is gone
        self._thread = threading.Thread(target=self._run, name="tap", daemon=True)
        self._thread.start()

    def start(self, argv: Sequence[str]) -> Program:
        """A program in this namespace. ProgramError."""
        return Program(self._runner, argv)

    def run(self, argv: Sequence[str], timeout_s: float) -> tuple[int, bytes]:
        """(exit code, output) of one; after `timeout_s` it is killed. ProgramError."""
        return run(self._runner, argv, timeout_s)

    def statistics(self) -> dict[str, int]:
        names = ("frames_out", "frames_in", "dropped_out", "dropped_in")
        return {name: getattr(self, name) for name in names}

    def close(self) -> None:
        self._stopping = True
        os.eventfd_write(self._stop_fd, 1)
        self._thread.join()
        os.close(self._stop_fd)

    # -- the thread

    def _run(self) -> None:
        poller, nic = select.poll(), self.nic
        poller.register(self._stop_fd, select.POLLIN)
        poller.register(self._tap_fd, select.POLLIN)
        poller.register(nic.fileno(), select.POLLIN)
        try:
            while not self._stopping:
                if self._pass_in() + self._pass_out():
                    continue
                if nic.arm():
                    poller.poll()
                nic.disarm()
        except NetError as error:
            self.failure = error
        except Exception as error:  # RingClosed between two looks: the same
            self.failure = NetError(str(error))

    def _pass_in(self) -> int:
        """From the network to the programs."""
        frames = self.nic.receive(FRAMES_AT_ONCE, 0)
        for frame in frames:
            try:
                os.write(self._tap_fd, frame)
            except OSError:  # no room, or what is no frame to the kernel
                self.dropped_in += 1
        self.frames_in += len(frames)
        return len(frames)

    def _pass_out(self) -> int:
        frames: list[bytes] = []
        most = self.nic.mtu + ETHERNET_HEADER_BYTES
        taken = 0
        with contextlib.suppress(OSError):
            while taken < FRAMES_AT_ONCE:
                frame = os.read(self._tap_fd, _FRAME_BYTES_MAX)
                taken += 1
                if ETHERNET_HEADER_BYTES <= len(frame) <= most:
                    frames.append(frame)
                else:
                    self.dropped_out += 1
        if frames:
            sent = self.nic.send(frames, SEND_PATIENCE_S)
            self.frames_out += sent
            self.dropped_out += len(frames) - sent
        return taken
