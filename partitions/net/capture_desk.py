"""Captures of a machine's networks, as they are asked for: from a client's socket to a `Capture` on its switch."""

import contextlib
import json
import socket
from collections.abc import Callable, Mapping
from typing import Any, Final

import trio

from partitions.net.capture import EVERY_PORT, Capture
from partitions.net.device import NetDevice
from partitions.net.switch import TooManyCaptures

OUTSIDE: Final = "outside"  # what a user calls a switch's port to its driver or TAP
_FAREWELL_S_MAX: Final = 1.0


class CaptureRefused(Exception):
    """The text says why, and `status` which kind of reason it is, as runtime.machine.management has it."""

    def __init__(self, status: str, text: str) -> None:
        super().__init__(text)
        self.status = status


class CaptureDesk:
    """Of the process that has the switches."""

    def __init__(
        self,
        devices: Mapping[str, object],
        attached: Mapping[str, tuple[str, ...]],
        id_of: Callable[[str], int],
    ) -> None:
        """`attached`: each partition's devices. `id_of(partition)`: LookupError, if it does not run."""
        self._devices, self._attached, self._id_of = devices, attached, id_of

    async def serve(self, values: Mapping[str, Any], sock: socket.socket) -> None:
        """Until the client has enough. The socket is closed."""
        with sock:
            try:
                network, capture = self._begin(values, sock)
                with capture.lock:  # its answer comes before any frame
                    network.switch.watch(capture)
                    _say(sock, {"ok": True, "network": network.name})
            except CaptureRefused as refused:
                _say(sock, {"ok": False, "status": refused.status, "message": str(refused)})
                return
            except TooManyCaptures as many:
                _say(sock, {"ok": False, "status": "BUSY", "message": str(many)})
                return
            try:
                await trio.lowlevel.wait_readable(sock)  # it says no more: this is its end
            finally:
                network.switch.unwatch(capture)
            with trio.move_on_after(_FAREWELL_S_MAX):
                await _say_last(sock, capture.farewell())

    def _begin(self, values: Mapping[str, Any], sock: socket.socket) -> tuple[NetDevice, Capture]:
        name, port, snap_bytes = values.get("name"), values.get("port"), values.get("snap_bytes")
        if not isinstance(name, str) or not isinstance(snap_bytes, int) or snap_bytes < 1:
            raise CaptureRefused("BAD_REQUEST", "want {name, port, snap_bytes}")
        if name in self._attached:
            network = self._network(self._adapter_of(name, port))
            return network, Capture(sock, snap_bytes, self._mac(network, name))
        network = self._network(name)
        if port is None:
            return network, Capture(sock, snap_bytes, EVERY_PORT)
        if port == OUTSIDE:
            if not network.leads_out:
                raise CaptureRefused("NOT_FOUND", f"network {network.name} has no port to the outside")
            return network, Capture(sock, snap_bytes, None)
        if network.name not in self._attached.get(str(port), ()):
            having = [one for one, devices in self._attached.items() if network.name in devices]
            raise CaptureRefused("NOT_FOUND", f"port {port!r} of {network.name}: it has {', '.join(having)}")
        return network, Capture(sock, snap_bytes, self._mac(network, str(port)))

    def _adapter_of(self, partition: str, port: object) -> str:
        names = [one for one in self._attached[partition] if self._is_network(one)]
        if port is not None:
            if port not in names:
                there = ", ".join(names) or "none"
                raise CaptureRefused(
                    "NOT_FOUND", f"partition {partition} has no adapter {port!r}; it has {there}"
                )
            return str(port)
        if not names:
            raise CaptureRefused("REFUSED", f"partition {partition} has no network that the root serves")
        if len(names) > 1:
            raise CaptureRefused(
                "REFUSED", f"{partition} has {len(names)} adapters; choose: --port {names[0]}"
            )
        return names[0]

    def _is_network(self, name: str) -> bool:
        return getattr(self._devices.get(name), "interface", None) == NetDevice.interface

    def _network(self, name: str) -> NetDevice:
        device = self._devices.get(name)
        if isinstance(device, NetDevice):
            return device
        if self._is_network(name):
            raise CaptureRefused(
                "REFUSED",
                f"the switch of {name} is in another process than the root's: capture wants"
                ' architecture = "microkernelized"',
            )
        known = [one for one in self._devices if self._is_network(one)] + list(self._attached)
        raise CaptureRefused("NOT_FOUND", f"{name[:80]!r} is no network and no partition; there are {known}")

    def _mac(self, network: NetDevice, partition: str) -> bytes:
        try:
            return network.mac_of(self._id_of(partition))
        except LookupError as error:
            raise CaptureRefused("REFUSED", f"partition {partition} does not run") from error


def _say(sock: socket.socket, words: Mapping[str, Any]) -> None:
    """The first packet on an empty socket: there is room. Who has gone away learns nothing."""
    with contextlib.suppress(OSError):
        sock.send(json.dumps(words).encode(), socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)


async def _say_last(sock: socket.socket, packet: bytes) -> None:
    while True:
        try:
            sock.send(packet, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        except BlockingIOError:
            await trio.lowlevel.wait_writable(sock)
        except OSError:
            return
        else:
            return
