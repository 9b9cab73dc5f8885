"""The platform: power button, firmware and out-of-band management of one machine.

It powers on the root, boots the hypervisor when the root asks for it, hands the root over, and watches both. It
holds no guest memory and no device, and it still answers when the root is dead, as a BMC does.
"""

import contextlib
import os
import socket
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import trio

from runtime import codec
from runtime.abi import EXIT_HYPERVISOR_GONE, PAGE_BYTES, ExitStatus
from runtime.config.model import MachineConfig, OnRootFailure
from runtime.config.sandbox import SandboxMode
from runtime.machine.console_lines import ConsoleLines
from runtime.machine.console_log import ConsoleLog
from runtime.machine.debug_access import DebugAccess
from runtime.machine.description import MachineFailed, describe_machine
from runtime.machine.events import EventLog
from runtime.machine.farewell import shut_down_guests
from runtime.machine.firmware import BOOT_MS_MAX, POWER_OFF_MS_MAX, PacketLink
from runtime.machine.hypervisor_options import hypervisor_options
from runtime.machine.process import Descriptor, execute, exit_of, exit_text, first_of
from runtime.machine.questions import Questions
from runtime.machine.questions import RequestRefused as RequestRefused
from runtime.machine.roster import Roster
from runtime.reserved_names import ROOT

STOP_GRACE_MS: Final = 2_000  # between asking the partitions to end and killing them


@dataclass(slots=True)
class Outcome:
    """How a machine ended."""

    reason: str  # one line
    failed: bool
    exits: dict[str, ExitStatus] = field(default_factory=dict)  # by partition


class Platform:
    """One machine from power-on to power-off. `run` does it all; the other methods are for management."""

    def __init__(self, config: MachineConfig, log: EventLog, debug: DebugAccess | None = None) -> None:
        self.config, self.log, self._debug = config, log, debug
        self._roster = Roster([config.path_of(partition.name) for partition in config.partitions])
        self._outcome: Outcome | None = None
        self._ended = trio.Event()
        self._ready = trio.Event()
        self._built = False  # the root has created every partition; their processes may still be starting
        self._stopping = False
        self._root: subprocess.Popen[bytes] | None = None  # the first one; its successors are the broker's
        self._root_pid: int | None = None
        self._broker: subprocess.Popen[bytes] | None = None
        self._firmware: PacketLink | None = None
        self._root_firmware: socket.socket | None = (
            None  # the root's end: each of its processes gets a duplicate
        )
        self._power: PacketLink | None = None
        self._console = ConsoleLog(log)
        self._root_hypercalls: socket.socket | None = None  # the hypervisor's end, until it boots
        self._questions = Questions()
        self.consoles = ConsoleLines(config)
        self._nursery: trio.Nursery | None = None
        self._reboot_began: float | None = None  # time.monotonic(), while one is under way
        self._first_root_is_over = False  # its end was wanted, by a reboot

    # -- the whole life ------------------------------------------------------------------------------------

    async def run(self, on_ready: Callable[[], None] = lambda: None) -> Outcome:
        """Power on, run until the machine ends or is stopped, leave no process behind.

        Cancelling this kills the machine. Raises nothing that a guest, the root or the broker did.
        """
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                self._power_on()
                nursery.start_soon(self._serve_firmware)
                nursery.start_soon(self._console.serve)
                nursery.start_soon(self._watch_root, nursery)
                with trio.move_on_after(BOOT_MS_MAX / 1000) as boot:
                    await first_of(self._ready, self._ended)
                if boot.cancelled_caught:
                    reason = f"the machine did not start within {BOOT_MS_MAX // 1000} s"
                    missing = ", ".join(self._roster.missing()) if self._built else ""
                    self._end(reason + (f": {missing} did not" if missing else ""), failed=True)
                if self._ready.is_set():
                    await self._warm_standby()
                    self.log.append("machine.ready")
                    on_ready()
                await self._ended.wait()
                if self._outcome is not None and not self._outcome.failed and self._ready.is_set():
                    await shut_down_guests(self.config, self._roster, self.ask_root, self._outcome.reason)
                await self._power_off()
                nursery.cancel_scope.cancel()
        finally:
            self._kill_everything()
        assert self._outcome is not None
        self._outcome.exits = self._roster.exits
        self.log.append("machine.stopped", reason=self._outcome.reason, failed=self._outcome.failed)
        return self._outcome

    def _end(self, reason: str, *, failed: bool) -> None:
        """The first reason counts: what follows from it is noise."""
        if self._outcome is None:
            self._outcome = Outcome(reason, failed)
            self.log.append("machine.ending", reason=reason, failed=failed)
            self._ended.set()

    def _power_on(self) -> None:
        root_end, self._root_hypercalls = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        firmware, self._root_firmware = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with root_end:
            self._root = execute(
                "partitions.root",
                {
                    "--hypercall-fd": root_end,
                    "--firmware-fd": self._root_firmware,
                    "--console-fd": self._console.writer,
                },
                own_user=self.config.machine.sandbox is not SandboxMode.OFF,
            )
        self._console.name(self._root.pid, ROOT)
        self._root_pid = self._root.pid
        self._firmware = PacketLink(firmware)
        self.log.append("root.started", ROOT, pid=self._root.pid)

    async def _boot_hypervisor(self, nursery: trio.Nursery) -> None:
        """Execute the broker and give it the root: its hypercall socket, its pidfd, the console."""
        assert self._root is not None
        assert self._root_hypercalls is not None
        assert self._root_firmware is not None
        power, broker_power = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with broker_power:
            sockets: dict[str, Descriptor] = {"--power-fd": broker_power}
            if self._debug is not None:
                sockets |= self._debug.of_broker()
            self._broker = execute("runtime.hypervisor", sockets, *hypervisor_options(self.config))
            if self._debug is not None:
                self._debug.listener.close()  # once the broker is gone, nobody shall seem to listen
        self.log.append("hypervisor.started", pid=self._broker.pid)
        self._power = PacketLink(power)
        nursery.start_soon(self._watch_broker)
        nursery.start_soon(self._serve_power)
        root_pidfd = os.pidfd_open(self._root.pid)
        traced = {} if self._debug is None else self._debug.of_successor()
        try:
            await self._power.send(
                "adopt",
                {
                    "name": ROOT,
                    "memory_pages": self.config.machine.memory // PAGE_BYTES,
                    "pid": self._root.pid,
                    "args": {"traced": list(traced)},
                },
                [
                    self._root_hypercalls.fileno(),
                    root_pidfd,
                    self._console.writer.fileno(),
                    self._root_firmware.fileno(),
                    *traced.values(),
                ],
            )
        finally:
            os.close(root_pidfd)
            self._root_hypercalls.close()

    async def _power_off(self) -> None:
        """The broker ends the partitions, the root its devices, then the broker itself; all in bounded time."""
        self._stopping = True
        if self._power is None or self._broker is None:
            return
        with trio.move_on_after(POWER_OFF_MS_MAX / 1000), contextlib.suppress(OSError):
            await self._power.send("stop", {"grace_ms": STOP_GRACE_MS})
            await exit_of(self._broker)

    def _kill_everything(self) -> None:
        """The last resort, and the rule: whatever happened above, nothing of ours runs after this."""
        for process in (self._root, self._broker):  # the broker's death takes every partition with it
            if process is not None:
                process.kill()
                process.wait()
        for end in (self._firmware, self._root_firmware, self._power, self._console, self._root_hypercalls):
            if end is not None:
                end.close()

    # -- what arrives --------------------------------------------------------------------------------------

    async def _serve_firmware(self) -> None:
        assert self._firmware is not None
        async with trio.open_nursery() as nursery:
            while True:
                try:
                    message = await self._firmware.receive()
                except codec.DecodeError as error:
                    self._end(f"the root sent garbage to the firmware: {error}", failed=True)
                    return
                if message is None:
                    return  # its exit is seen by pidfd, with the reason
                if message.verb == "console" and len(message.fds) == 1:
                    self.consoles.connect(str(message.values.get("line")), message.fds[0])
                    continue
                codec.close_all(message.fds)
                match message.verb:
                    case "boot-hypervisor" if self._broker is None:
                        await self._boot_hypervisor(nursery)
                    case "ready":
                        self._built = True
                        self._check_ready()
                    case "failed":
                        self._end(str(message.values.get("reason", "the root gave no reason")), failed=True)
                    case "describe":  # a root after a reboot: it begins as the first one did
                        await self._describe()
                    case "restored":
                        self.log.append("root.restored", ROOT, **message.values)
                        nursery.start_soon(self._warm_standby)
                    case "inspected" | "answered" | "error":
                        self._questions.answered(message)
                    case verb:
                        self.log.append("root.protocol_error", ROOT, verb=verb[:80])

    async def _serve_power(self) -> None:
        assert self._power is not None
        while (message := await self._power.receive()) is not None:
            codec.close_all(message.fds)
            values = message.values
            match message.verb:
                case "adopt":
                    assert self._firmware is not None
                    await self._firmware.send("booted", {"partition": values["id"]})
                    await self._describe()
                case "halting":
                    self._end(self._root_end(str(values.get("reason"))), failed=True)
                case "halt":
                    pass  # now every process is dead; its own end is seen by pidfd
                case "partition.started":
                    self._partition_started(values)
                case "partition.exited":
                    self._partition_exited(values)
                case "stop" | "kill" | "warm":
                    self._questions.answered(message)
                case _ if "request" in values:
                    self._questions.answered(message)
                case kind:
                    name = values.get("name")
                    self.log.append(
                        kind,
                        name if isinstance(name, str) else None,
                        **{key: value for key, value in values.items() if key != "name"},
                    )

    async def _describe(self) -> None:
        assert self._firmware is not None
        try:
            await describe_machine(self.config, self._firmware, self._debug.trace if self._debug else None)
        except MachineFailed as failure:
            self._end(str(failure), failed=True)

    def _root_end(self, reason: str) -> str:
        """The broker's, but for the first root, which is our child: only we can learn how it died."""
        if self._root is not None and self._root_pid == self._root.pid and self._root.poll() is not None:
            return reason.replace("its process ended", exit_text(self._root))
        return reason

    def _partition_started(self, values: Mapping[str, Any]) -> None:
        name, pid = str(values["name"]), int(values["pid"])
        if name == ROOT:
            self._root_started(values)
            self._console.name(pid, name)
            return
        self._roster.started(name, pid)
        self.log.append("partition.started", name, pid=pid, partition_id=values.get("id"))
        self._console.name(pid, name)
        self._check_ready()

    def _root_started(self, values: Mapping[str, Any]) -> None:
        """A successor has taken over the root's part; or, after a reboot, the first one's."""
        if self._reboot_began is not None:
            self._roster.forget()
        self._root_pid = int(values["pid"])
        self.log.append(
            "root.started",
            ROOT,
            pid=self._root_pid,
            generation=values.get("generation"),
            at_ns=values.get("at_ns"),
        )

    async def _warm_standby(self) -> None:
        """Have the next root ready, where the config wants one. Again after each takeover."""
        if self.config.machine.on_root_failure is OnRootFailure.STANDBY and not self._stopping:
            with contextlib.suppress(OSError, RequestRefused):
                await self.ask_hypervisor("warm")

    def _check_ready(self) -> None:
        if self._built and not self._roster.missing():
            self._ready.set()

    def _partition_exited(self, values: Mapping[str, Any]) -> None:
        name = str(values["name"])
        if name == ROOT:
            reason = self._root_end(str(values.get("reason")))
            self.log.append("root.exited", ROOT, reason=reason, at_ns=values.get("at_ns"))
            return
        status = ExitStatus(values.get("code"), values.get("signal"))
        self._console.drain()  # its last words come before its death
        self._roster.exited(name, status)
        self.log.append(
            "partition.exited", name, reason=values.get("reason"), code=status.code, signal=status.signal
        )
        if self._reboot_began is not None:
            return
        if not self._ready.is_set() and (missing := self._roster.missing(below=name)):
            self._end(f"partition {name} ended before it had started {', '.join(missing)}", failed=True)
        if not self._stopping and self._roster.have_all_ended:
            bad = self._roster.failures
            self._end("every partition has ended" + (f" ({', '.join(bad)})" if bad else ""), failed=bool(bad))

    async def _watch_root(self, nursery: trio.Nursery) -> None:
        assert self._root is not None
        await exit_of(self._root)
        if self._first_root_is_over or (self._broker and self._root.poll() == EXIT_HYPERVISOR_GONE):
            return  # the broker's end, which comes with this one, is the reason
        if not self._stopping and (self._broker is None or not self.root_is_replaced):
            status = exit_text(self._root)
            await trio.sleep(0.005)  # the broker may have more to say of it
            self._end(f"the root partition died ({status})", failed=True)

    async def _watch_broker(self) -> None:
        assert self._broker is not None
        await exit_of(self._broker)
        if not self._stopping:
            await trio.sleep(0.005)  # its last message, the reason, may still be on the way
            self._end(f"the hypervisor died ({exit_text(self._broker)})", failed=True)

    # -- for management ------------------------------------------------------------------------------------

    async def ask_hypervisor(self, verb: str, **values: object) -> Mapping[str, Any]:
        """A question to the broker on its power socket. ConnectionError: it does not run."""
        if self._power is None:
            raise ConnectionError("the hypervisor has not booted")
        return await self._questions.ask(self._power, verb, values)

    async def ask_root(self, verb: str, **values: object) -> Mapping[str, Any]:
        """A question to the root's virtualization stack. ConnectionError: it does not run."""
        if self._firmware is None or not self._ready.is_set():
            raise ConnectionError("the root is not up")
        return await self._questions.ask(self._firmware, verb, values)

    @property
    def root_is_replaced(self) -> bool:
        return self.config.machine.on_root_failure is not OnRootFailure.HALT

    def status(self) -> dict[str, Any]:
        """What the platform knows by itself, whatever the state of root and broker."""
        return {
            "name": self.config.machine.name,
            "ready": self._ready.is_set(),
            "ending": self._outcome.reason if self._outcome else None,
            "platform_pid": os.getpid(),
            "root_pid": self._root_pid,
            "hypervisor_pid": self._broker.pid if self._broker else None,
        }

    async def reboot(self) -> None:
        """End every partition and begin again with a new root. Returns at once. RequestRefused: not now."""
        if not self._ready.is_set() or self._outcome is not None or self._reboot_began is not None:
            raise RequestRefused("the machine is starting, or ending")
        self._reboot_began, self._first_root_is_over = time.monotonic(), True
        try:
            await self.ask_hypervisor("reboot", grace_ms=STOP_GRACE_MS)
        except BaseException:
            self._reboot_began = None
            raise
        self.log.append("machine.rebooting")
        self._built, self._ready = False, trio.Event()
        assert self._nursery is not None
        self._nursery.start_soon(self._see_reboot_through)

    async def _see_reboot_through(self) -> None:
        with trio.move_on_after((BOOT_MS_MAX + 2 * STOP_GRACE_MS) / 1000) as scope:
            await first_of(self._ready, self._ended)
        if scope.cancelled_caught:
            self._end("the machine did not come back from its reboot", failed=True)
        began, self._reboot_began = self._reboot_began, None
        if self._ready.is_set() and began is not None:
            self.log.append("machine.rebooted", took_ms=round((time.monotonic() - began) * 1000))
            await self._warm_standby()

    async def tell_root(self, verb: str, values: Mapping[str, object] | None = None) -> None:
        if self._firmware is None or not self._ready.is_set():
            raise RequestRefused("the root is not up")
        await self._firmware.send(verb, values)

    def stop(self, reason: str, *, failed: bool = False) -> None:
        """Begin an orderly end; `run` returns when it is done."""
        self._end(reason, failed=failed)
