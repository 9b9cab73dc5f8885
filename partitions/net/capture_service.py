"""Captures where the switch is: a client's socket, from its first answer to its end, in a thread of its own.

What is asked for was looked up by the root (partitions.net.capture_desk), which knows partitions by their names; which
addresses they have here, and whether this network leads out, is known where the driver is.
"""

import contextlib
import json
import select
import socket
import threading
from collections.abc import Mapping
from typing import Any, Final, Protocol

from partitions.net.capture import EVERY_PORT, Capture
from partitions.net.switch import LearningSwitch, TooManyCaptures

EVERY: Final = "every"  # port: each frame once, as it comes in
OUTSIDE: Final = "outside"  # the switch's port to its driver or TAP; that is also what a user calls it
_FAREWELL_MS_MAX: Final = 1000


class CaptureRefused(Exception):
    """The text says why, and `status` which kind of reason it is, as runtime.machine.management has it."""

    def __init__(self, status: str, text: str) -> None:
        super().__init__(text)
        self.status = status


class Captured(Protocol):
    """A network whose switch is here."""

    name: str

    @property
    def switch(self) -> LearningSwitch: ...
    @property
    def leads_out(self) -> bool: ...
    def mac_of(self, partition: int) -> bytes: ...


def serve(network: Captured, words: Mapping[str, Any], sock: socket.socket) -> None:
    """Does not wait. `words`: {port, snap_bytes}; port: EVERY, OUTSIDE, or a partition's id. The socket is ours."""
    threading.Thread(target=_serve, args=(network, words, sock), name="capture", daemon=True).start()


def _serve(network: Captured, words: Mapping[str, Any], sock: socket.socket) -> None:
    with sock:
        try:
            capture = _capture_of(network, words, sock)
            with capture.lock:  # its answer comes before any frame
                network.switch.watch(capture)
                say(sock, {"ok": True, "network": network.name})
        except CaptureRefused as refused:
            refuse(sock, refused)
            return
        except TooManyCaptures as many:
            refuse(sock, CaptureRefused("BUSY", str(many)))
            return
        try:
            _wait(sock, select.POLLIN)  # it says no more: this is its end
        finally:
            network.switch.unwatch(capture)
        if _wait(sock, select.POLLOUT, _FAREWELL_MS_MAX):
            _send(sock, capture.farewell())


def _capture_of(network: Captured, words: Mapping[str, Any], sock: socket.socket) -> Capture:
    port, snap_bytes = words.get("port"), words.get("snap_bytes")
    if isinstance(snap_bytes, int) and snap_bytes > 0:
        if port == EVERY:
            return Capture(sock, snap_bytes, EVERY_PORT)
        if port == OUTSIDE and not network.leads_out:
            raise CaptureRefused("NOT_FOUND", f"network {network.name} has no port to the outside")
        if port == OUTSIDE:
            return Capture(sock, snap_bytes, None)
        if isinstance(port, int):
            return Capture(sock, snap_bytes, network.mac_of(port))
    raise CaptureRefused("BAD_REQUEST", "want {name, port, snap_bytes}")


def refuse(sock: socket.socket, refused: CaptureRefused) -> None:
    say(sock, {"ok": False, "status": refused.status, "message": str(refused)})


def say(sock: socket.socket, words: Mapping[str, Any]) -> None:
    """The first packet on an empty socket: there is room. Who has gone away learns nothing."""
    _send(sock, json.dumps(words).encode())


def _send(sock: socket.socket, packet: bytes) -> None:
    with contextlib.suppress(OSError):
        sock.send(packet, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)


def _wait(sock: socket.socket, what: int, timeout_ms: int | None = None) -> bool:
    poller = select.poll()
    poller.register(sock, what)
    return bool(poller.poll(timeout_ms))
