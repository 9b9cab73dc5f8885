"""The platform: power button, firmware and out-of-band management of one machine.

It powers on the root, boots the hypervisor when the root asks for it, hands the root over, and watches both. It
holds no guest memory and no device, and it still answers when the root is dead, as a BMC does.
"""

import contextlib
import os
import socket
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import trio

from runtime import codec
from runtime.abi import EXIT_HYPERVISOR_GONE, ExitStatus
from runtime.config.model import MachineConfig, OnRootFailure
from runtime.machine.console_lines import ConsoleLines
from runtime.machine.console_log import ConsoleLog
from runtime.machine.debug_access import DebugAccess
from runtime.machine.description import MachineFailed, describe_machine
from runtime.machine.device_plug import DevicePlug
from runtime.machine.events import EventLog
from runtime.machine.farewell import shut_down_guests
from runtime.machine.firmware import BOOT_MS_MAX, POWER_OFF_MS_MAX, LinkMessage, PacketLink
from runtime.machine.first_root import hand_over, power_on
from runtime.machine.hypervisor_options import hypervisor_options
from runtime.machine.listening_sockets import ListeningSockets
from runtime.machine.loader import Loader
from runtime.machine.outcome import Outcome
from runtime.machine.power_state import PowerState
from runtime.machine.process import Child, Descriptor, exit_of, exit_text, first_of
from runtime.machine.questions import Questions, RequestRefused
from runtime.machine.rebooting import STOP_GRACE_MS, Rebooting
from runtime.machine.roster import Roster
from runtime.machine.streams import HostStreams
from runtime.machine.user_networks import UserNetworks
from runtime.reserved_names import ROOT


class Platform:
    """One machine from power-on to power-off. `run` does it all; the other methods are for management."""

    def __init__(self, config: MachineConfig, log: EventLog, debug: DebugAccess | None = None) -> None:
        self.config, self.log, self._debug = config, log, debug
        self._roster = Roster([config.path_of(partition.name) for partition in config.partitions])
        self._state = PowerState(log)
        self._stopping = False
        self._root: Child | None = None  # the first one; its successors are the broker's
        self._root_pid: int | None = None
        self._broker: Child | None = None
        self._loader = Loader()
        self._firmware: PacketLink | None = None
        self._root_firmware: socket.socket | None = (
            None  # the root's end: each of its processes gets a duplicate
        )
        self._power: PacketLink | None = None
        self._console = ConsoleLog(log)
        self._root_hypercalls: socket.socket | None = None  # the hypervisor's end, until it boots
        self._questions = Questions()
        self.consoles, self.sockets = ConsoleLines(config), ListeningSockets()
        self.plug = DevicePlug(self)
        self._user = UserNetworks(config, self.log.append)
        self.streams = HostStreams([one.name for one in config.partitions if one.streams], self.tell_root)
        self._nursery: trio.Nursery | None = None
        self._rebooting = Rebooting(self._state, log, self.ask_hypervisor, self._warm_standby)

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
                    await first_of(self._state.ready, self._state.ended)
                if boot.cancelled_caught:
                    reason = f"the machine did not start within {BOOT_MS_MAX // 1000} s"
                    missing = ", ".join(self._roster.missing()) if self._state.built else ""
                    self._state.end(reason + (f": {missing} did not" if missing else ""), failed=True)
                if self._state.ready.is_set():
                    await self._warm_standby()
                    self.log.append("machine.ready")
                    on_ready()
                await self._state.ended.wait()
                outcome = self._state.outcome
                if outcome is not None and not outcome.failed and self._state.ready.is_set():
                    asked = self.ask_root, self.ask_hypervisor
                    await shut_down_guests(self.config, self._roster, *asked, outcome.reason)
                await self._power_off()
                nursery.cancel_scope.cancel()
        finally:
            self._kill_everything()
        outcome = self._state.outcome
        assert outcome is not None
        outcome.exits = self._roster.exits
        self.log.append("machine.stopped", reason=outcome.reason, failed=outcome.failed)
        return outcome

    def _power_on(self) -> None:
        root_end, self._root_hypercalls = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        firmware, self._root_firmware = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with root_end, self._loader.root_end:
            links = root_end, self._root_firmware, self._console.writer, self._loader.root_end
            self._root = power_on(self.config, *links)
        self._console.name(self._root.pid, ROOT)
        self._root_pid = self._root.pid
        self._firmware = PacketLink(firmware)
        self.log.append("root.started", ROOT, pid=self._root.pid)

    async def _boot_hypervisor(self, nursery: trio.Nursery) -> None:
        """Have the broker loaded, and give it the root: its hypercall socket, its pidfd, the console."""
        assert self._root is not None
        assert self._root_hypercalls is not None
        assert self._root_firmware is not None
        power, broker_power = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with broker_power:
            sockets: dict[str, Descriptor] = {"--power-fd": broker_power}
            if self._debug is not None:
                sockets |= self._debug.of_broker()
            self._broker = await self._loader.boot(sockets, *hypervisor_options(self.config))
            if self._debug is not None:
                self._debug.listener.close()  # once the broker is gone, nobody shall seem to listen
        self.log.append("hypervisor.started", pid=self._broker.pid)
        self._console.holds_partitions(self._broker.pid)
        self._power = PacketLink(power)
        nursery.start_soon(self._watch_broker)
        nursery.start_soon(self._serve_power)
        traced = {} if self._debug is None else self._debug.of_successor()
        with self._root_hypercalls as hypercalls:
            fds = hypercalls.fileno(), self._console.writer.fileno(), self._root_firmware.fileno()
            await hand_over(self._power, self.config, self._root, *fds, traced)

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
        self._loader.close()
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
                    self._state.end(f"the root sent garbage to the firmware: {error}", failed=True)
                    return
                if message is None:
                    return  # its exit is seen by pidfd, with the reason
                if message.verb == "console" and len(message.fds) == 1:
                    self.consoles.connect(str(message.values.get("line")), message.fds[0])
                    continue
                if message.verb == "user-net" and len(message.fds) == 1:
                    nursery.start_soon(self._user.serve, str(message.values.get("device")), message.fds[0])
                    continue
                codec.close_all(message.fds)
                message.fds.clear()
                match message.verb:
                    case "boot-hypervisor" if self._broker is None:
                        await self._boot_hypervisor(nursery)
                    case "ready":
                        self._state.built = True
                        self._check_ready()
                    case "failed":
                        self._state.end(
                            str(message.values.get("reason", "the root gave no reason")), failed=True
                        )
                    case "dial-stream":
                        nursery.start_soon(self.streams.dial, message.values)
                    case "describe":  # a root after a reboot: it begins as the first one did
                        await self._describe()
                    case "restored":
                        self.log.append("root.restored", ROOT, **message.values)
                        nursery.start_soon(self._warm_standby)
                    case "reopen":
                        nursery.start_soon(self.plug.reopen, str(message.values.get("device")))
                    case "inspected" | "answered" | "error":
                        self._questions.answered(message)
                    case verb:
                        self.log.append("root.protocol_error", ROOT, verb=verb[:80])

    async def _serve_power(self) -> None:
        assert self._power is not None
        while (message := await self._power.receive()) is not None:
            values = message.values
            if "request" not in values:  # an answer's are whoever's has asked
                codec.close_all(message.fds)
                message.fds.clear()
            match message.verb:
                case "adopt":
                    assert self._firmware is not None
                    await self._firmware.send("booted", {"partition": values["id"]})
                    await self._describe()
                case "halting":
                    self._state.end(self._root_end(str(values.get("reason"))), failed=True)
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
        trace = self._debug.trace if self._debug else None
        try:
            await describe_machine(self.config, self._firmware, self.sockets, trace)
        except MachineFailed as failure:
            self._state.end(str(failure), failed=True)

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
        if self._rebooting.is_under_way:
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
        if self._state.built and not self._roster.missing():
            self._state.ready.set()

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
        if self._rebooting.is_under_way:
            return
        if not self._state.ready.is_set() and (missing := self._roster.missing(below=name)):
            self._state.end(f"partition {name} ended before it had started {', '.join(missing)}", failed=True)
        if not self._stopping and self._roster.have_all_ended:
            bad = self._roster.failures
            self._state.end(
                "every partition has ended" + (f" ({', '.join(bad)})" if bad else ""), failed=bool(bad)
            )

    async def _watch_root(self, nursery: trio.Nursery) -> None:
        assert self._root is not None
        await exit_of(self._root)
        if self._rebooting.first_root_is_over or (self._broker and self._root.poll() == EXIT_HYPERVISOR_GONE):
            return  # the broker's end, which comes with this one, is the reason
        if not self._stopping and (self._broker is None or not self.root_is_replaced):
            status = exit_text(self._root)
            await trio.sleep(0.005)  # the broker may have more to say of it
            self._state.end(f"the root partition died ({status})", failed=True)

    async def _watch_broker(self) -> None:
        assert self._broker is not None
        await exit_of(self._broker)
        if not self._stopping:
            await trio.sleep(0.005)  # its last message, the reason, may still be on the way
            self._state.end(f"the hypervisor died ({exit_text(self._broker)})", failed=True)

    # -- for management ------------------------------------------------------------------------------------

    async def ask_hypervisor(self, verb: str, **values: object) -> Mapping[str, Any]:
        """A question to the broker on its power socket. ConnectionError: it does not run."""
        if self._power is None:
            raise ConnectionError("the hypervisor has not booted")
        return await self._questions.ask(self._power, verb, values)

    async def ask_for_slots(self, **values: object) -> LinkMessage:
        """Its "slots", with the descriptors, which are the caller's. RequestRefused, ConnectionError."""
        if self._power is None:
            raise ConnectionError("the hypervisor has not booted")
        return await self._questions.ask_for_descriptors(self._power, "slots", values)

    async def ask_root(self, verb: str, fds: Sequence[int] = (), /, **values: object) -> Mapping[str, Any]:
        """A question to the root's virtualization stack. ConnectionError: it does not run."""
        if self._firmware is None or not self._state.ready.is_set():
            raise ConnectionError("the root is not up")
        return await self._questions.ask(self._firmware, verb, values, fds)

    @property
    def root_is_replaced(self) -> bool:
        return self.config.machine.on_root_failure is not OnRootFailure.HALT

    def status(self) -> dict[str, Any]:
        """What the platform knows by itself, whatever the state of root and broker."""
        return {
            "name": self.config.machine.name,
            "ready": self._state.ready.is_set(),
            "ending": self._state.outcome.reason if self._state.outcome else None,
            "platform_pid": os.getpid(),
            "root_pid": self._root_pid,
            "hypervisor_pid": self._broker.pid if self._broker else None,
        }

    async def reboot(self) -> None:
        """End every partition and begin again with a new root. Returns at once. RequestRefused: not now."""
        await self._rebooting.begin(self._nursery)

    async def tell_root(
        self, verb: str, values: Mapping[str, object] | None = None, fds: Sequence[int] = ()
    ) -> None:
        if self._firmware is None or not self._state.ready.is_set():
            raise RequestRefused("the root is not up")
        await self._firmware.send(verb, values, fds)

    def stop(self, reason: str, *, failed: bool = False) -> None:
        """Begin an orderly end; `run` returns when it is done."""
        self._state.end(reason, failed=failed)
