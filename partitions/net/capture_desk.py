"""Captures of a machine's networks, as they are asked for: from names to a switch, in this process or in another one.

The client's socket goes to whoever has the switch, by the passage of its driver partition where that is not us; so its
frames take no other way than that.
"""

import socket
from collections.abc import Callable, Mapping
from typing import Any

from bus import guids
from partitions.drivers.passage import HandsIn, PassageBlocked
from partitions.net import capture_service
from partitions.net.capture_service import EVERY, OUTSIDE, CaptureRefused
from partitions.net.device import NetDevice


class CaptureDesk:
    """Of the root."""

    def __init__(
        self,
        devices: Mapping[str, object],
        attached: Mapping[str, tuple[str, ...]],
        id_of: Callable[[str], int],
    ) -> None:
        """`attached`: each partition's devices. `id_of(partition)`: LookupError, if it does not run."""
        self._devices, self._attached, self._id_of = devices, attached, id_of

    def take(self, values: Mapping[str, Any], sock: socket.socket) -> None:
        """A client's wishes and its socket, which is ours from here on."""
        try:
            network, words = self._look_up(values)
            device = self._devices[network]
            if isinstance(device, NetDevice):
                device.take_socket(words, sock)
                return
            if not isinstance(device, HandsIn):
                raise CaptureRefused("REFUSED", f"nobody can look into the switch of {network}")
            device.hand_in(words, sock.fileno())
        except CaptureRefused as refused:
            capture_service.refuse(sock, refused)
        except PassageBlocked as blocked:
            capture_service.refuse(sock, CaptureRefused("REFUSED", str(blocked)))
        sock.close()

    def _look_up(self, values: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
        """The network, and what who has its switch is told."""
        name, port, snap_bytes = values.get("name"), values.get("port"), values.get("snap_bytes")
        if not isinstance(name, str) or not isinstance(snap_bytes, int) or snap_bytes < 1:
            raise CaptureRefused("BAD_REQUEST", "want {name, port, snap_bytes}")
        if name in self._attached:
            return self._adapter_of(name, port), {"port": self._id(name), "snap_bytes": snap_bytes}
        if not self._is_network(name):
            known = [one for one in self._devices if self._is_network(one)] + list(self._attached)
            text = f"{name[:80]!r} is no network and no partition; there are {known}"
            raise CaptureRefused("NOT_FOUND", text)
        if port is None:
            return name, {"port": EVERY, "snap_bytes": snap_bytes}
        if port == OUTSIDE:
            return name, {"port": OUTSIDE, "snap_bytes": snap_bytes}
        if name not in self._attached.get(str(port), ()):
            having = [one for one, devices in self._attached.items() if name in devices]
            raise CaptureRefused("NOT_FOUND", f"port {port!r} of {name}: it has {', '.join(having)}")
        return name, {"port": self._id(str(port)), "snap_bytes": snap_bytes}

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
            raise CaptureRefused("REFUSED", f"partition {partition} has no network of the root's")
        if len(names) > 1:
            raise CaptureRefused(
                "REFUSED", f"{partition} has {len(names)} adapters; choose: --port {names[0]}"
            )
        return names[0]

    def _is_network(self, name: str) -> bool:
        return getattr(self._devices.get(name), "interface", None) == guids.NETWORK

    def _id(self, partition: str) -> int:
        try:
            return self._id_of(partition)
        except LookupError as error:
            raise CaptureRefused("REFUSED", f"partition {partition} does not run") from error
