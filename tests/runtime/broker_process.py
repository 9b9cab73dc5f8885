"""A real broker process, with the test as its platform and as its root partition.

The test makes the root's hypercalls itself; the root's process is a mere `sleep`, there to be watched and killed.
Its successors are processes of their own, `tests.runtime.standin_root`, which the test commands as their firmware.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import select
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from bus import native
from runtime import codec
from runtime.abi import ALL_PRIVILEGES, HvStatus, HypercallError, PortType, Route
from runtime.hypercalls.caller import HypercallPort
from tests.runtime import standin_guest

REPOSITORY: Final = Path(__file__).parents[2]
DEADLINE_S: Final = 20.0  # how long something that must happen may take on a busy machine
GUEST: Final = "tests.runtime.standin_guest"
SINT: Final = 2


class BrokerProcess:
    def __init__(
        self,
        memory_pages: int = 4096,
        on_root_failure: str = "halt",
        args: Mapping[str, object] | None = None,
    ) -> None:
        self.power, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.power.settimeout(DEADLINE_S)
        command = [sys.executable, "-m", "runtime.hypervisor", "--power-fd", str(theirs.fileno())]
        command += ["--zygote-module", "tests.runtime.standin_zygote", "--on-root-failure", on_root_failure]
        self.process = subprocess.Popen(command, cwd=REPOSITORY, pass_fds=[theirs.fileno()])
        theirs.close()
        self.root_process = subprocess.Popen(["sleep", "600"])
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.pids: set[int] = set()  # of partitions, as announced
        ours, hypercalls = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.root_socket = ours
        pidfd = os.pidfd_open(self.root_process.pid)
        self.firmware, roots_firmware = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.firmware.settimeout(DEADLINE_S)
        fds = [hypercalls.fileno(), pidfd, 2, roots_firmware.fileno()]
        adopt = {"name": "root", "memory_pages": memory_pages, "pid": self.root_process.pid}
        self.adopted = self.request("adopt", adopt | {"args": dict(args or {"colour": "blue"})}, fds)
        hypercalls.close()
        roots_firmware.close()
        os.close(pidfd)
        self.port = HypercallPort(ours)
        birth = self.port.get_birth()
        self.birth = birth
        self.sim = mmap.mmap(birth.vps[0].sim_fd, 4096)
        self.sief = mmap.mmap(birth.vps[0].sief_fd, 4096)
        self.line_fd = birth.vps[0].line_fd
        self.port.enable_synic(0, [SINT])

    # -- the platform's side

    def _next(self) -> tuple[str, dict[str, Any]]:
        received = codec.receive_message(self.power)
        assert received is not None, "the broker hung up"
        message: Any = received[0]
        verb, fields = message
        if verb in ("partition.started", "root.standby"):
            self.pids.add(fields["pid"])
        return verb, fields

    def request(self, verb: str, fields: dict[str, object], fds: list[int] | None = None) -> dict[str, Any]:
        codec.send_message(self.power, [verb, fields | {"request": 7}], fds or [])
        while True:
            answer, result = self._next()
            if result.get("request") == 7:
                assert answer in (verb, "error")
                return result | {"verb": answer}
            self.events.append((answer, result))

    def event(self, kind: str, **expected: object) -> dict[str, Any]:
        """Wait for an event with these fields; others are kept."""
        place, deadline = 0, time.monotonic() + 2 * DEADLINE_S
        while True:
            assert time.monotonic() < deadline, f"no {kind} of {expected}, only others"
            while place < len(self.events):
                found, fields = self.events[place]
                if found == kind and expected.items() <= fields.items():
                    del self.events[place]
                    return fields
                place += 1
            self.events.append(self._next())

    # -- the root's successors

    def successor(self) -> dict[str, Any]:
        """The next root's first words. It was alone at that moment."""
        verb, values = self._from_root()
        assert (verb, values["alone"]) == ("born", True)
        return values

    def tell_root(self, verb: str, **values: object) -> Any:
        """Have the successor make a hypercall."""
        codec.send_message(self.firmware, [verb, values])
        answer, result = self._from_root()
        assert answer == "done"
        return result["answer"]

    def _from_root(self) -> tuple[str, dict[str, Any]]:
        received = codec.receive_message(self.firmware)
        assert received is not None
        message: Any = received[0]
        verb, values = message
        return verb, values

    # -- the root's side

    def spawn(
        self,
        do: str,
        *,
        pages: int = 200,
        files: list[int] | None = None,
        links: bool = True,
        events: Route | None = None,
        start: bool = True,
        **args: object,
    ) -> int:
        """A child that runs the stand-in guest, with messages both ways on connections 1 (to us) and id (ours).

        With `events`, there is one event port each way besides: a guest may claim its doorbells as soon as it runs.
        """
        port = self.port
        child = port.create_partition()
        port.deposit(child, pages)
        port.set_privileges(child, ALL_PRIVILEGES)
        port.initialize(child)
        port.create_vp(0, child)
        port.set_program(child, GUEST, f"guest{child}", {"do": do, **args}, files or [])
        if links:
            port.create_port(child, child, PortType.MESSAGE, SINT)
            port.connect_port(standin_guest.TO_ROOT, 1, child, partition=child)
            port.create_port(1, 1, PortType.MESSAGE, SINT, partition=child)
            port.connect_port(child, child, 1)
        if events is not None:
            self._link_events(child, events)
        if start:
            port.start_vp(child)
        return child

    def _link_events(self, child: int, route: Route) -> None:
        """One event port each way: ours is `child`, with flag `child`."""
        port = self.port
        port.create_port(
            0x100 + child, child, PortType.EVENT, SINT, base_flag=child, flag_count=1, partition=1
        )
        port.connect_port(standin_guest.EVENT_CONNECTION, 1, 0x100 + child, partition=child, route=route)
        port.create_port(
            standin_guest.EVENT_PORT, 1, PortType.EVENT, SINT, base_flag=1, flag_count=1, partition=child
        )
        port.connect_port(0x200 + child, child, standin_guest.EVENT_PORT, route=route)

    def message(self) -> tuple[int, bytes]:
        """The next message to the root: (its port, which is the child's id; payload)."""
        while (message := native.synic_take(self.sim, SINT)) is None:
            wait_readable(self.line_fd)
            os.read(self.line_fd, 8)
        if message[3]:
            self.port.end_of_message(0)
        return message[1], message[2]

    def post(self, child: int, payload: bytes) -> None:
        """Patiently: a full port, or a guest that has not switched its SynIC on yet."""
        deadline = time.monotonic() + DEADLINE_S
        while True:
            try:
                return self.port.post_message(child, 1, payload)
            except HypercallError as error:
                if error.status not in (HvStatus.INSUFFICIENT_BUFFERS, HvStatus.INVALID_SYNIC_STATE):
                    raise
            assert time.monotonic() < deadline
            time.sleep(0.001)

    # -- the end

    def close(self) -> None:
        """However the test left it: afterwards nothing of the machine may be left."""
        self.power.close()
        self.firmware.close()
        try:
            self.process.wait(DEADLINE_S)
        finally:
            self.process.kill()
            self.process.wait()
            self.root_process.kill()
            self.root_process.wait()
            self.port.close()
            self.sim.close()
            self.sief.close()
            for vp in self.birth.vps:
                codec.close_all([vp.sim_fd, vp.sief_fd, vp.line_fd])
        for pid in self.pids:
            wait_until(lambda pid=pid: not is_alive(pid))


def wait_readable(fd: int) -> None:
    poller = select.poll()  # select knows no descriptor beyond 1023
    poller.register(fd, select.POLLIN)
    assert poller.poll(DEADLINE_S * 1000), "nothing came"


def wait_until(condition: Any) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def is_alive(pid: int) -> bool:
    """A zombie counts as dead."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    return False


@contextlib.contextmanager
def broker_process(
    memory_pages: int = 4096, on_root_failure: str = "halt", args: Mapping[str, object] | None = None
) -> Iterator[BrokerProcess]:
    broker = BrokerProcess(memory_pages, on_root_failure, args)
    try:
        yield broker
    finally:
        broker.close()
