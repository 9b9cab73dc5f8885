"""A broker in the test's own process, without a thread: it runs when it is told to, and its insides can be looked at.

Its partitions are sockets of the test's. No process stands behind any but the root, for which a `sleep` does.
"""

import mmap
import os
import select
import socket
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final, cast

from runtime import codec
from runtime.abi import ALL_PRIVILEGES, ROOT_PARTITION, HvStatus, HypercallCode, Privilege
from runtime.hypercalls.caller import HypercallPort
from runtime.hypercalls.connection import Result
from runtime.hypervisor.broker import Broker
from runtime.hypervisor.machine import RootFailurePolicy
from runtime.hypervisor.outbox import Outbox
from runtime.hypervisor.recorder import RECORDER_BYTES, Recorder
from runtime.hypervisor.zygote import Zygote

_TURNS_MAX: Final = 1_000  # of the loop, for whatever follows from one packet


class _NoZygote:
    """Keeps the sockets that partitions would be born with."""

    module = "none"
    sandbox = False
    pid = 0

    def __init__(self) -> None:
        self.socket, self._theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.outbox = Outbox(self.socket)
        self.born: dict[int, socket.socket] = {}

    def spawn(self, partition: int, *more: Any) -> None:
        hypercall_fd, console_fd = more[-1]
        self.born[partition] = socket.socket(fileno=hypercall_fd)
        os.close(console_fd)

    def close(self) -> None:
        for sock in (self.socket, self._theirs, *self.born.values()):
            sock.close()


class _PumpedPort(HypercallPort):
    """Its calls run the broker until the reply is there."""

    def __init__(self, world: "BrokerInProcess") -> None:
        super().__init__(world.sockets[ROOT_PARTITION])
        self._world = world

    def call(self, code: HypercallCode, fds: Sequence[int] = (), **args: object) -> Result:
        self._world.send(ROOT_PARTITION, [int(code), {n: v for n, v in args.items() if v is not None}], fds)
        (reply,) = self._world.replies(ROOT_PARTITION)
        status, values = reply[0], reply[1]
        assert status == HvStatus.SUCCESS, HvStatus(status)
        return Result(values, reply[2])


class BrokerInProcess:
    def __init__(self, root_process: subprocess.Popen[bytes]) -> None:
        self._zygote = _NoZygote()
        self.recording = mmap.mmap(-1, RECORDER_BYTES)
        self.broker = Broker(cast(Zygote, self._zygote), Recorder(self.recording), RootFailurePolicy.HALT)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.sockets = {ROOT_PARTITION: ours}
        pidfd = os.pidfd_open(root_process.pid)
        self.broker.adopt("root", 4096, {}, root_process.pid, theirs, pidfd, None, [])
        self.root = _PumpedPort(self)
        self.machine = self.broker.hypervisor.machine

    def pump(self) -> None:
        for _ in range(_TURNS_MAX):
            self.broker.loop.run_once(0)
            if not self.broker.loop._epoll.poll(0):
                break

    def send(self, partition: int, packet: object, fds: Sequence[int] = ()) -> None:
        """An encoded packet, or what is to be one; and all that follows from it."""
        data = packet if isinstance(packet, bytes) else codec.encode(packet)
        codec.send_packet(self.sockets[partition], data, fds)
        self.pump()

    def replies(self, partition: int) -> list[Any]:
        """[status, values, descriptors] of each that has come."""
        found: list[Any] = []
        poller = select.poll()
        poller.register(self.sockets[partition], select.POLLIN)
        while poller.poll(0):
            received = codec.receive_message(self.sockets[partition])
            if received is None:
                found.append("end of file")
                break
            message: Any = received[0]
            found.append([*message, received[1]])
        return found

    def child(self, privileges: Privilege = ALL_PRIVILEGES, vps: int = 1) -> int:
        """One that runs, as far as the broker knows."""
        root = self.root
        child = root.create_partition()
        root.deposit(child, 200)
        root.set_privileges(child, privileges)
        root.initialize(child)
        for vp in range(vps):
            root.create_vp(vp, child)
        root.set_program(child, "none", f"guest{child}")
        for vp in range(vps):
            root.start_vp(child, vp)
        self.sockets[child] = self._zygote.born[child]
        return child

    def close(self) -> None:
        for sock in self.sockets.values():
            sock.close()
        self._zygote.close()
        for partition in list(self.sockets):
            self.broker._sockets.close(partition)
        self.broker.loop._epoll.close()


@contextmanager
def brokers(count: int) -> Iterator[list[BrokerInProcess]]:
    root = subprocess.Popen(["sleep", "600"])
    worlds: list[BrokerInProcess] = []
    try:
        while len(worlds) < count:
            worlds.append(BrokerInProcess(root))
        yield worlds
    finally:
        for world in worlds:
            world.close()
        root.kill()
        root.wait()
