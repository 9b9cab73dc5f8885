"""A switch: two guests that talk through their parent, which copies every packet out of one ring into the other's.

What a channel through the root costs: both guests share pages with the root, and none with each other.
"""

import threading
from typing import Final
from uuid import UUID

from bus.native import Channel, GpaMap, RingClosed, RingError, RingFull
from bus.packets import DESCRIPTOR_BYTES, TRAILER_BYTES, PacketFlags, PacketType
from bus.seam import Seam
from partitions.machine_plan import DevicePlan

# Ours: Hyper-V has no such device.
SWITCH_INTERFACE: Final = UUID("8f6b1c52-4d3e-4b0a-9a51-737769740001")
STOP_POLL_NS: Final = 100_000_000  # how late `stop` may be seen where nobody closes the channel
PORTS: Final = 2
_BATCH: Final = 16
_PEER_POLL_S: Final = 0.005


class SwitchDevice:
    """An OfferedDevice for two partitions."""

    interface: Final[UUID] = SWITCH_INTERFACE

    def __init__(self, plan: DevicePlan) -> None:
        self.name = plan.name
        self._lock = threading.Lock()  # guards _ports: openings come in threads of their own
        self._ports: list[SwitchPort] = []

    def open(self, channel: Channel, gpa_map: GpaMap, record: memoryview, seam: Seam) -> "SwitchPort":
        """ValueError: both ports are taken."""
        with self._lock:
            if len(self._ports) >= PORTS:
                raise ValueError(f"{self.name} has {PORTS} ports")
            self._ports.append(port := SwitchPort(self, channel))
        return port

    def other(self, port: "SwitchPort") -> "SwitchPort | None":
        return next((each for each in self._ports if each is not port), None)

    def leave(self, port: "SwitchPort") -> None:
        with self._lock:
            if port in self._ports:
                self._ports.remove(port)

    def close(self) -> None:
        """There is nothing behind it."""


class SwitchPort:
    """One opening of one channel. Its thread receives here, and is the only one that sends on the other port."""

    def __init__(self, switch: SwitchDevice, channel: Channel) -> None:
        self._switch, self.channel = switch, channel
        self.requests = self.dropped = 0
        self.waits_for_guest = False

    def replay(self) -> None:
        """What was not released is passed on, perhaps a second time, by `serve`."""

    def serve(self, stop: threading.Event) -> None:
        """Until `stop` is set or the channel is closed. Raises RingCorrupt: the guest broke the ring."""
        try:
            while not stop.is_set():
                for kind, flags, identity, _, payload in self.channel.receive_batch(_BATCH, STOP_POLL_NS):
                    self._pass_on(stop, kind, flags, identity, payload)
                self.channel.release()
        except RingClosed:
            return
        finally:
            self._switch.leave(self)

    def _pass_on(self, stop: threading.Event, kind: int, flags: int, identity: int, payload: bytes) -> None:
        self.requests += 1
        wanted = bool(flags & PacketFlags.COMPLETION_REQUESTED)
        while not stop.is_set():
            if kind not in (PacketType.INBAND, PacketType.COMPLETION):
                break
            if (peer := self._switch.other(self)) is None:
                self._wait_for_peer(stop)
                continue
            try:
                if kind == PacketType.COMPLETION:
                    peer.channel.send_completion(payload, identity)
                else:
                    peer.channel.send(payload, identity, wanted)
                return
            except RingFull:
                if not self._wait_for(peer, len(payload)):
                    break
            except (RingError, ValueError):  # the other's fault, or larger than its ring can take
                break
        self.dropped += 1

    def _wait_for_peer(self, stop: threading.Event) -> None:
        """The other guest has not opened its port yet, or opens it again: what is for it stays in the ring."""
        self.waits_for_guest = True
        stop.wait(_PEER_POLL_S)
        self.waits_for_guest = False

    def _wait_for(self, peer: "SwitchPort", payload_bytes: int) -> bool:
        """Until the other guest takes packets in. False: it never will."""
        self.waits_for_guest = True
        try:
            peer.channel.wait_writable(DESCRIPTOR_BYTES + payload_bytes + TRAILER_BYTES, STOP_POLL_NS)
        except (RingError, ValueError):
            return False
        finally:
            self.waits_for_guest = False
        return True

    def statistics(self) -> dict[str, int]:
        return {"requests": self.requests, "dropped": self.dropped}
