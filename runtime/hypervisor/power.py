"""The power socket: how the platform, as firmware and management controller, commands the broker.

platform -> broker   [verb, map]: "adopt", "list", "show", "kill", "stop"
broker -> platform   [verb, map]: the answer to a request, in order, its "request" key echoed; or "error"
                     events: "partition.created", ".started", ".exited", ".deleted"; "root.standby";
                     "halting", and when every process is dead, "halt"

adopt {name, memory_pages, pid, args?} + [root's hypercall socket, its pidfd, console?, firmware?] -> adopt {id};
                      the firmware is what each later process of the root is born with
warm {}            -> warm {}; a standby for the root is made ready, and again after each takeover
list {after?}      -> list {partitions: [...], more}
show {name}        -> show {...}
kill {name, signal?} -> kill {id}; SIGKILL ends it, which is an event; others are sent as they are
stop {grace_ms}    -> stop {}; then SIGTERM to all but the root, SIGTERM to the root, SIGKILL to who is left
"""

from __future__ import annotations

import os
import select
import signal
import socket
from collections.abc import Mapping
from typing import Final

from runtime import codec
from runtime.abi import ROOT_PARTITION
from runtime.hypervisor.broker import Broker
from runtime.hypervisor.inventory import list_partitions, show_partition
from runtime.hypervisor.loop import now_ns
from runtime.hypervisor.outbox import Outbox
from runtime.hypervisor.partitions import Partition

ADOPT_DESCRIPTORS_MAX: Final = 4
GRACE_MS_MAX: Final = 600_000
STOPPED: Final = "stopped"  # the reason of a halt that the platform asked for
_FAREWELL_MS: Final = 500  # for the platform to take the last packet


class _Refused(Exception):
    """The platform's request cannot be done; the text says why."""


class PowerSocket:
    """Serves the platform until the machine is down."""

    def __init__(self, broker: Broker, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._broker: Final = broker
        self._socket: Final = sock
        self._outbox: Final = Outbox(sock)
        self._stop_at_ns: list[int] | None = None  # when the children, then the root, are out of time
        self._stop_grace_ms = 0
        broker.loop.watch(sock.fileno(), self._serve)
        broker.announce_to(self._send)

    def run(self) -> str:
        """Until the machine halts; returns why. Every process is then dead, and the platform told."""
        broker = self._broker
        while broker.halted is None:
            broker.loop.run_once(self._stop_step())
        reason = broker.halted if self._stop_at_ns is None else STOPPED
        self._send("halting", {"reason": reason})  # first, so that nobody takes what follows for the cause
        broker.bring_down()
        self._send("halt", {"reason": reason})
        deadline_ns = now_ns() + _FAREWELL_MS * 1_000_000
        while self._outbox.waits and now_ns() < deadline_ns:
            broker.loop.run_once(_FAREWELL_MS)
        return reason

    def _serve(self, events: int) -> None:
        try:
            if events & select.EPOLLOUT:
                self._outbox.flush()
            received = codec.receive_message(self._socket, ADOPT_DESCRIPTORS_MAX)
        except BlockingIOError:
            self._broker.loop.watch_writable(self._socket.fileno(), self._outbox)
            return
        except codec.DecodeError as error:
            self._send("error", {"reason": str(error)})
            return
        except OSError:
            received = None
        if received is None:
            self._broker.halted = self._broker.halted or "the platform is gone"
            return
        message, fds = received
        match message:
            case [str() as verb, dict() as args]:
                self._answer(verb, args, fds)
            case _:
                codec.close_all(fds)
                self._send("error", {"reason": "not [verb, map]"})

    def _answer(self, verb: str, args: dict[str, object], fds: list[int]) -> None:
        echo = {"request": args.pop("request")} if "request" in args else {}
        try:
            if verb == "adopt":
                result = self._adopt(args, fds)
                fds = []
            elif verb == "list":
                result = list_partitions(self._broker.hypervisor.machine, _integer(args, "after", 0))
            elif verb == "show":
                result = show_partition(self._broker.hypervisor.machine, self._named(args))
            elif verb == "kill":
                partition = self._named(args)
                number = _integer(args, "signal", int(signal.SIGKILL))
                if number >= signal.NSIG:
                    raise _Refused(f"there is no signal {number}")
                if number == signal.SIGKILL:
                    self._broker.kill(partition.id)
                else:
                    self._broker.signal(partition.id, number)
                result = {"id": partition.id}
            elif verb == "warm":
                self._broker.standby.warm()
                result = {}
            elif verb == "stop":
                result = self._stop(args)
            else:
                raise _Refused(f"unknown verb {verb!r}")
        except _Refused as refused:
            verb, result = "error", {"verb": verb, "reason": str(refused)}
        finally:
            codec.close_all(fds)
        self._send(verb, result | echo)

    def _send(self, verb: str, fields: Mapping[str, object]) -> None:
        try:
            self._outbox.send([verb, fields])
        except OSError:  # its end of file is on the way
            self._outbox.close()
        self._broker.loop.watch_writable(self._socket.fileno(), self._outbox)

    def _named(self, args: dict[str, object]) -> Partition:
        name = args.get("name")
        found = self._broker.hypervisor.machine.by_path(name) if isinstance(name, str) else None
        if found is None:
            raise _Refused(f"no partition is named {name!r}")
        return found

    def _adopt(self, args: dict[str, object], fds: list[int]) -> dict[str, object]:
        name, root_args = args.get("name"), args.get("args", {})
        if not isinstance(name, str) or not isinstance(root_args, dict):
            raise _Refused("adopt wants a name, and args as a map")
        memory_pages, pid = _integer(args, "memory_pages"), _integer(args, "pid")
        if not 2 <= len(fds) <= ADOPT_DESCRIPTORS_MAX:
            raise _Refused(f"adopt wants 2 to 4 descriptors, not {len(fds)}")
        sock = socket.socket(fileno=fds[0])
        try:
            console_fd = fds[2] if len(fds) > 2 else None
            firmware_fd = fds[3] if len(fds) > 3 else None
            self._broker.adopt(name, memory_pages, root_args, pid, sock, fds[1], console_fd, firmware_fd)
        except (ValueError, OSError) as error:
            sock.detach()
            raise _Refused(str(error)) from error
        return {"id": ROOT_PARTITION}

    # -- stopping: first the children, whose writes the root still serves, then the root -------------------

    def _stop(self, args: dict[str, object]) -> dict[str, object]:
        if self._stop_at_ns is None:
            self._broker.hypervisor.stop()
            self._stop_grace_ms = min(_integer(args, "grace_ms", 0), GRACE_MS_MAX)
            self._stop_at_ns = [self._deadline_ns()]
            for partition in self._broker.live_partitions - {ROOT_PARTITION}:
                self._broker.signal(partition, signal.SIGTERM)
        return {}

    def _deadline_ns(self) -> int:
        return now_ns() + self._stop_grace_ms * 1_000_000

    def _stop_step(self) -> int | None:
        """What is due of a stop; returns how long, in ms, until the next may be."""
        if self._stop_at_ns is None:
            return None
        broker = self._broker
        children, root = broker.live_partitions - {ROOT_PARTITION}, broker.live_partitions & {ROOT_PARTITION}
        now = now_ns()
        if len(self._stop_at_ns) == 1:
            if children and now < self._stop_at_ns[0]:
                return _ms_until(self._stop_at_ns[0], now)
            for partition in children:
                broker.kill(partition)
            self._stop_at_ns.append(self._deadline_ns())
            broker.signal(ROOT_PARTITION, signal.SIGTERM)
        if root and now < self._stop_at_ns[1]:
            return _ms_until(self._stop_at_ns[1], now)
        broker.halted = broker.halted or STOPPED
        return 0


def _ms_until(deadline_ns: int, from_ns: int) -> int:
    return (deadline_ns - from_ns) // 1_000_000 + 1


def _integer(args: dict[str, object], name: str, default: int | None = None) -> int:
    value = args.get(name, default)
    if type(value) is not int or value < 0:
        raise _Refused(f"{name} must be a whole number, not {value!r}")
    return value


def serve(power_fd: int, broker: Broker) -> str:
    """Run the machine on an inherited power socket until it halts; returns why."""
    os.set_inheritable(power_fd, False)
    with socket.socket(fileno=power_fd) as sock:
        return PowerSocket(broker, sock).run()
