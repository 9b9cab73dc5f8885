"""What platform and root say to each other, as a machine's firmware and its first software do.

    root -> platform   boot-hypervisor {}                 the loader wants the hypervisor
    platform -> root   booted {partition}                 it runs; the root is this partition of it
    platform -> root   machine {machine, devices, cpus, traced}   [machine], [[root.device]] and [root] cpus of the
                       config; whose trace memory comes along
    platform -> root   partition {a [[partition]] table} + its files, once for each
    platform -> root   create {}                          all was said: open the devices, create the children
    root -> platform   describe {}                        a root after a reboot: say it all again, from `machine` on
    root -> platform   ready {}                           every child was started
    root -> platform   failed {reason}                    it could not; one line for the user
    root -> platform   restored {at_ns, ...}              it has taken over from a predecessor that died
    platform -> root   retire {}                          finish what is under way, save, and end with EXIT_RETIRED
    platform -> root   stick {device}                     a fault on purpose: serve no channel any more
    platform -> root   seam {step, passes, deaths, device}  die at that step, at that pass; so many roots (bus.seam)
    platform -> root   inspect {request, name}            -> inspected {request, devices: [...]}
    platform -> root   integration {request, name, service, order}   -> answered {request, ...} or
                                                                        error {request, reason}
    platform -> root   capture {name, port, snap_bytes} + a client's socket   its answer goes there:
                       runtime.machine.capture_wire
    platform -> root   device {request, operation, name, device, ...} + its backing file   it comes or goes:
                       partitions.plug_and_play          -> answered {request, ...} or error {request, reason}
    root -> platform   reopen {device}                    another process is to have the file of one that was added
    platform -> root   backing {device, reason?} + the file
    platform -> root   viewer {name} + a VNC viewer's connection, to the screen of that partition
    platform -> root   stream {partition} + a socket      a program of the host wants that guest
    root -> platform   dial-stream {number, partition, service}   -> dialled {number} + a socket, or none
    root -> platform   user-net {device} + the end of a pair   passt is to be at it
    root -> platform   console {line} + the end of a pair   it leads to a serial line: runtime.machine.console_lines
    platform -> root   inject {request, order}, heal {request, number}, fault-counts {request}
                                                          -> answered {request, ...} or error {request, reason}

With a device both are for its driver partition, otherwise for the root itself.

The root powers off (flushes, closes its devices, ends) when the broker, which stops the machine, sends it SIGTERM.

Each is the msgpack array [verb, values] in one SEQPACKET packet (`runtime.codec`), descriptors riding along.
"""

import contextlib
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import trio

from runtime import codec

BOOT_MS_MAX: Final = (
    30_000  # a cold interpreter on a loaded machine may take seconds; after this it has failed
)
POWER_OFF_MS_MAX: Final = 10_000  # for partitions to end and for the root to flush its devices


@dataclass(frozen=True, slots=True)
class LinkMessage:
    """One message. Whoever receives it owns the descriptors."""

    verb: str
    values: Mapping[str, Any]
    fds: list[int]


class PacketLink:
    """One end of a SEQPACKET socket that carries [verb, values], under trio. One task receives; any may send."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._socket = sock

    async def send(
        self, verb: str, values: Mapping[str, object] | None = None, fds: Sequence[int] = ()
    ) -> None:
        """Raises: BrokenPipeError, ConnectionResetError: the other end is gone; EncodeError: beyond a limit."""
        while True:
            try:
                codec.send_message(self._socket, [verb, dict(values or {})], fds)
            except BlockingIOError:
                await trio.lowlevel.wait_writable(self._socket)
            else:
                return

    async def receive(self) -> LinkMessage | None:
        """The next message; None: the other end is gone.

        Raises:
            DecodeError: the other end broke the rules; its packet is dropped and its descriptors are closed.
        """
        while True:
            try:
                received = codec.receive_message(self._socket)
            except BlockingIOError:
                await trio.lowlevel.wait_readable(self._socket)
                continue
            except ConnectionResetError:
                return None
            if received is None:
                return None
            message, fds = received
            match message:
                case [str() as verb, dict() as values]:
                    return LinkMessage(verb, values, fds)
            codec.close_all(fds)
            raise codec.DecodeError(f"not [verb, values]: {message!r:.80}")

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._socket.close()
