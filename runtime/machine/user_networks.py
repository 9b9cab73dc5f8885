"""Networks in user space: a passt for each device with backend = "user", started with the socket that the root sends.

The root's end of that socket ends passt, so none outlives its root; a successor sends a new one, and gets a new passt.
A passt that ends by itself is started again, on a new pair: the root gets its end through the old one, since what was
under way there may be half a frame. Connections through the old passt are lost.
"""

import os
import select
import shutil
import socket
import subprocess
from collections.abc import Callable
from typing import Final

import trio

from runtime.config.devices import DeviceConfig
from runtime.config.forwards import Forward
from runtime.config.model import MachineConfig

PROGRAM: Final = "passt"
ADDRESS, NETMASK, GATEWAY = "10.0.2.15", "24", "10.0.2.2"  # as other such networks have them
MTU_DEFAULT: Final = 1500
END_SECONDS_MAX: Final = 2.0
RESTART_SECONDS_MIN: Final = 0.5  # before another one is started; twice as long each time
RESTART_SECONDS_MAX: Final = 30.0
LASTING_SECONDS: Final = 60.0  # who ran for so long did not fail at its start
_WORDS_MAX: Final = 500


def find_program() -> str | None:
    return shutil.which(PROGRAM)


def arguments_of(device: DeviceConfig, fd: int) -> list[str]:
    """What passt is told, but for its own name."""
    forwards = [Forward.parse(text) for text in device.forward]
    words = ["--foreground", "--quiet", "--stderr", "--one-off", "--fd", str(fd), "--ipv4-only"]
    words += ["--address", ADDRESS, "--netmask", NETMASK, "--gateway", GATEWAY]
    words += ["--mtu", str(device.mtu or MTU_DEFAULT)]
    for protocol in ("tcp", "udp"):
        these = [one for one in forwards if one.protocol == protocol]
        words += [f"--{protocol}-ports", "none"] if not these else []
        for one in these:
            words += [f"--{protocol}-ports", f"{one.address}/{one.host_port}:{one.guest_port}"]
    return words


class UserNetworks:
    """Of one machine."""

    def __init__(self, config: MachineConfig, log: Callable[..., object]) -> None:
        """`log(kind, partition, **fields)`."""
        self._config, self._log = config, log
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    async def serve(self, name: str, fd: int) -> None:
        """Start one on this socket, and another one whenever it ends, until the root's end does. `fd` is closed."""
        if (before := self._running.pop(name, None)) is not None:
            before.kill()
        towards_root, pause_s = socket.socket(fileno=fd), RESTART_SECONDS_MIN
        try:
            while True:
                started_s = trio.current_time()
                process = await self._run(name, towards_root.fileno())
                if process is None or self._running.get(name) is not process or _has_ended(towards_root):
                    return
                if trio.current_time() - started_s > LASTING_SECONDS:
                    pause_s = RESTART_SECONDS_MIN
                await trio.sleep(pause_s)
                pause_s = min(2 * pause_s, RESTART_SECONDS_MAX)
                if self._running.get(name) is not process:  # another root has come
                    return
                ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
                with theirs, towards_root:
                    before_root, towards_root = towards_root, ours
                    if not await _send_on(before_root, theirs):
                        return
        finally:
            towards_root.close()

    async def _run(self, name: str, fd: int) -> subprocess.Popen[bytes] | None:
        """One, until it has ended. None: it can't be started."""
        said = os.memfd_create("passt", os.MFD_CLOEXEC)
        try:
            process = self._running[name] = self._start(name, fd, said)
            ended = os.pidfd_open(process.pid)
            try:
                await trio.lowlevel.wait_readable(ended)
            finally:
                os.close(ended)
                with trio.CancelScope(shield=True):
                    process.kill()
                    await trio.to_thread.run_sync(process.wait)
            if self._running.get(name) is process:
                words = os.pread(said, _WORDS_MAX, 0).decode("utf-8", "replace").strip()
                self._log("net.user_ended", device=name, code=process.returncode, said=words)
            return process
        except (OSError, KeyError) as error:
            self._log("net.user_failed", device=name, error=f"{PROGRAM}: {error}")
            return None
        finally:
            os.close(said)

    def _start(self, name: str, fd: int, said: int) -> subprocess.Popen[bytes]:
        device = self._config.device(name)
        if (program := find_program()) is None:
            raise FileNotFoundError("it is not installed: apt install passt")
        return subprocess.Popen(
            [program, *arguments_of(device, fd)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=said,
            pass_fds=[fd],
            cwd="/",
            start_new_session=True,
        )


def _has_ended(sock: socket.socket) -> bool:
    """The other end is closed."""
    poller = select.poll()
    poller.register(sock, 0)
    return bool(poller.poll(0))


async def _send_on(sock: socket.socket, other: socket.socket) -> bool:
    """Through the one, that the other is used from here on. False: nobody takes it."""
    sock.setblocking(False)
    with trio.move_on_after(END_SECONDS_MAX):
        while True:
            try:
                socket.send_fds(sock, [b"\0"], [other.fileno()])
            except BlockingIOError:
                await trio.lowlevel.wait_writable(sock)
            except OSError:
                return False
            else:
                return True
    return False
