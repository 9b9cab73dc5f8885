"""A way into a driver partition for sockets of the outside: what a message of 240 bytes cannot.

The stack has a connection to an event port of the driver's, and has the hypervisor make a pair of sockets of that
(runtime.hypervisor.endpoints): one end for the driver, one for itself. On it go words, each packet with one descriptor
beside it. The hypervisor sees none of them, and nobody answers here: whatever is to be said is said on the socket that
was handed in. Each process at either end has a pair of its own; what was under way to one that died is closed.
"""

import contextlib
import os
import select
import socket
import threading
from collections.abc import Callable, Mapping
from typing import Any, Final, Protocol, runtime_checkable

from bus.synic import VMBUS_SINT
from partitions.drivers.state import DRIVER_CHANNELS_MAX
from partitions.stack.stack_resources import RootResources
from partitions.stack.vmbus_ports import DRIVER_PASSAGE_PORT, passage_connection
from runtime import codec
from runtime.abi import HvStatus, HypercallError, HypervisorGone, PortType, Route
from runtime.hypercalls.caller import HypercallPort

KINDS: Final = ("net",)  # of devices that have one
_FLAG: Final = DRIVER_CHANNELS_MAX + 1  # behind those of channels; nobody looks at it
_TRIES: Final = 2  # the driver that had the other end may be another process now


class PassageBlocked(Exception):
    """Nothing was handed in. One line for the user."""


@runtime_checkable
class HandsIn(Protocol):
    """Of the stack's: a device whose driver is in another process, and has a passage."""

    def hand_in(self, words: Mapping[str, Any], fd: int) -> None:
        """`fd` stays the caller's. PassageBlocked."""


@runtime_checkable
class TakesSockets(Protocol):
    """A DrivenDevice that outsiders talk to."""

    def take_socket(self, words: Mapping[str, Any], sock: socket.socket) -> None:
        """From any thread; does not wait. The socket is the device's from here on."""


def open_passage(stack: RootResources, driver: int) -> None:
    """For good: both ports outlive the processes. HypercallError: too little memory was deposited."""
    call = stack.hypercalls
    call.create_port(
        DRIVER_PASSAGE_PORT,
        stack.partition,
        PortType.EVENT,
        VMBUS_SINT,
        0,
        partition=driver,
        base_flag=_FLAG,
        flag_count=1,
    )
    call.connect_port(passage_connection(driver), driver, DRIVER_PASSAGE_PORT, route=Route.DIRECT)


class PassageEntry:
    """The stack's end."""

    def __init__(self, call: HypercallPort, driver: int) -> None:
        self._call, self._connection = call, passage_connection(driver)
        self._socket: socket.socket | None = None

    def hand_in(self, words: Mapping[str, Any], fd: int) -> None:
        """PassageBlocked."""
        for _ in range(_TRIES):
            try:
                if self._socket is None:
                    self._socket = socket.socket(
                        fileno=self._call.claim_connection_endpoint(self._connection)
                    )
                    self._socket.setblocking(False)
                codec.send_message(self._socket, words, [fd])
            except BlockingIOError as error:
                raise PassageBlocked("its driver takes nothing at the moment") from error
            except HypercallError as error:
                raise PassageBlocked(f"there is no way to its driver: {error}") from error
            except OSError:  # whoever had the other end has ended
                self.close()
            else:
                return
        raise PassageBlocked("its driver has ended")

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None


class PassageExit:
    """The driver's end, and a thread that waits there."""

    def __init__(self, call: HypercallPort, take: Callable[[Mapping[str, Any], socket.socket], None]) -> None:
        self._call, self._take = call, take
        self._bell_fd = call.claim_port_doorbell(DRIVER_PASSAGE_PORT).fd
        self._stop_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._thread = threading.Thread(target=self._run, name="passage", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        with contextlib.suppress(HypervisorGone), select.epoll() as poll:
            poll.register(self._bell_fd, select.EPOLLIN | select.EPOLLET)  # before the first look
            poll.register(self._stop_fd, select.EPOLLIN)
            entry = self._renewed(None, poll)
            try:
                while self._stop_fd not in (ready := {fd for fd, _ in poll.poll()}):
                    if entry is not None and entry.fileno() in ready and not self._receive(entry):
                        entry.close()
                        entry = None
                    if self._bell_fd in ready:
                        entry = self._renewed(entry, poll)
            finally:
                if entry is not None:
                    entry.close()

    def _renewed(self, entry: socket.socket | None, poll: select.epoll) -> socket.socket | None:
        """The end that waits for us, if any; what we had is the stack's no more then."""
        try:
            fresh = socket.socket(fileno=self._call.claim_port_endpoint(DRIVER_PASSAGE_PORT))
        except HypercallError as error:
            if error.status is HvStatus.NO_DATA:
                return entry
            raise
        if entry is not None:
            entry.close()
        poll.register(fresh, select.EPOLLIN)
        return fresh

    def _receive(self, entry: socket.socket) -> bool:
        """False: the other end is gone, or says what nobody says there."""
        try:
            if (received := codec.receive_message(entry, 1)) is None:
                return False
        except (OSError, codec.DecodeError):
            return False
        words, fds = received
        if not isinstance(words, dict) or len(fds) != 1:
            codec.close_all(fds)
            return False
        self._take(words, socket.socket(fileno=fds[0]))
        return True

    def close(self) -> None:
        os.eventfd_write(self._stop_fd, 1)
        self._thread.join()
        os.close(self._stop_fd)
        os.close(self._bell_fd)


def listen_for_sockets(call: HypercallPort, device: object) -> PassageExit | None:
    return PassageExit(call, device.take_socket) if isinstance(device, TakesSockets) else None
