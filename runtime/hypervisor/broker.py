"""The broker: feeds calls, reports and deaths to the state machine, and carries its effects out.

One thread. Nothing here waits for a partition: sockets towards partitions are non-blocking, and one that does
not take its reply, or closes its socket and lives on, has broken the calling convention and is killed.
"""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable, Mapping
from typing import Final

from bus import native
from runtime import codec
from runtime.abi import ROOT_PARTITION, ExitStatus, HvStatus
from runtime.hypervisor.clockwork import Clockwork
from runtime.hypervisor.effects import (
    Announce,
    ArmTimers,
    CheckHeartbeat,
    CompleteCall,
    Effect,
    Halt,
    KeepFiles,
    KillPartition,
    RefreshStatistics,
    ReplaceRoot,
    SpawnPartition,
    SuspendPartition,
)
from runtime.hypervisor.host import Host
from runtime.hypervisor.kept_zygote import KeptZygote
from runtime.hypervisor.lent_vps import LentVps
from runtime.hypervisor.loop import Loop, now_ns
from runtime.hypervisor.machine import RootFailurePolicy
from runtime.hypervisor.processes import ORPHAN_SWEEP_MS, OrphanSweeper, WatchedProcess, sweep_orphans
from runtime.hypervisor.programs import granted_to_process
from runtime.hypervisor.recorded import RecordedHypervisor
from runtime.hypervisor.recorder import Recorder
from runtime.hypervisor.replies import DONE, Reply
from runtime.hypervisor.service_time import ServiceTime
from runtime.hypervisor.sockets import PartitionSockets
from runtime.hypervisor.standby import STANDBY_ID, Standby
from runtime.hypervisor.zygote import Spawned, SpawnFailed, Zygote

REQUEST_DESCRIPTORS_MAX: Final = 16  # the most that any call takes
LAST_CALLS_MAX: Final = 64  # of a process that has ended or is late: what it asked for before is still done
EXIT_GRACE_MS: Final = 500  # from the end of a partition's socket to that of its process
HALT_GRACE_MS: Final = 2_000  # for killed processes to be reaped, before the broker leaves them to the kernel
ROOT_MODULE: Final = "partitions.root"
_SPAWN_FAILED: Final = ExitStatus(127, None)  # as a shell reports it
_DONE: Final = codec.encode([int(DONE.status), DONE.values])


class Broker:
    """Owns all sockets, processes and memory of the machine below the platform."""

    def __init__(self, zygote: Zygote, recorder: Recorder, on_root_failure: RootFailurePolicy) -> None:
        self.host: Final = Host()
        self.hypervisor: Final = RecordedHypervisor(recorder, self.host, native, on_root_failure)
        self.loop: Final = Loop()
        self._clockwork: Final = Clockwork(
            self.loop, self.hypervisor, self.host.clock, self._serve_last_calls, self.carry_out
        )
        self.standby: Final = Standby(self, self.loop)
        self.service: Final = ServiceTime(self.hypervisor.machine)
        self._sockets: Final = PartitionSockets(self.loop, self._serve, self.service)
        self._lent: Final = LentVps(self.loop, self._sockets, self.host, self.hypervisor, self._cut_off)
        self._processes: dict[int, WatchedProcess] = {}
        self._spawning: set[int] = set()  # partitions asked for, not answered yet
        self._doomed: set[int] = set()  # of those: to be killed when they appear
        self._orphans: Final = OrphanSweeper(self.loop, self._known_pids)
        self._console_fd: int | None = None
        self._announce: Callable[[str, Mapping[str, object]], None] = lambda kind, fields: None
        self.halted: str | None = None  # why; the loop ends
        self.zygote: Final = KeptZygote(
            self.loop,
            zygote,
            self._zygote_answered,
            self._zygote_lost,
            may_restart=lambda: self.halted is None,
        )

    # -- what power.py uses --------------------------------------------------------------------------------

    def announce_to(self, announce: Callable[[str, Mapping[str, object]], None]) -> None:
        self._announce = announce

    def adopt(
        self,
        name: str,
        memory_pages: int,
        args: Mapping[str, object],
        pid: int,
        sock: socket.socket,
        pidfd: int,
        console_fd: int | None,
        lent: list[int],
    ) -> None:
        """Take the root in. Takes the descriptors over unless it raises ValueError or OSError. `lent`: what each later
        process of it is born with, the firmware first."""
        self.carry_out(self.hypervisor.adopt_root(name, memory_pages, args, pid, now_ns(), len(lent)))
        self.host.lend_files(ROOT_PARTITION, lent)
        self._console_fd = console_fd
        self._add_process(WatchedProcess(ROOT_PARTITION, pid, pidfd))
        self._sockets.add(ROOT_PARTITION, sock)

    def kill(self, partition: int) -> None:
        self.carry_out(self.hypervisor.kill(partition))

    def signal(self, partition: int, signal_number: int) -> None:
        if (process := self._processes.get(partition)) is not None:
            process.kill(signal_number)

    @property
    def live_partitions(self) -> set[int]:
        """Whose process is there or on its way."""
        return set(self._processes) | self._spawning

    def bring_down(self) -> None:
        """Kill every process and reap them, for a bounded time. What is not ours dies by the kernel's hand."""
        self.hypervisor.stop()
        for process in self._processes.values():
            process.kill()
        self.standby.close()
        self._spawning.discard(ROOT_PARTITION)  # that was the standby
        self._doomed |= self._spawning
        deadline_ns = now_ns() + HALT_GRACE_MS * 1_000_000
        while self.live_partitions and now_ns() < deadline_ns:
            self.loop.run_once(ORPHAN_SWEEP_MS)
        self.zygote.close()
        while sweep_orphans(set()) and now_ns() < deadline_ns:
            time.sleep(ORPHAN_SWEEP_MS / 1000)

    # -- hypercalls ----------------------------------------------------------------------------------------

    def _serve(self, partition: int) -> bool:
        """One request and its reply. False: nothing there, or the connection is over."""
        if (sock := self._sockets.readable(partition)) is None:
            return False
        try:
            packet = codec.receive_packet(sock, REQUEST_DESCRIPTORS_MAX)
        except BlockingIOError:
            return False
        except codec.DecodeError:
            return self._reply(partition, sock, Reply(HvStatus.INVALID_HYPERCALL_INPUT))
        except OSError:
            packet = None
        if packet is None:
            self._sockets.close(partition)
            self._kill_soon(partition)
            return False
        kept = False
        try:
            reply, effects = self._decide(partition, packet)
            kept = self.carry_out(effects, packet.fds)
        finally:
            if not kept:
                codec.close_all(packet.fds)
        if reply.status is HvStatus.CALL_PENDING:
            if partition in self._sockets:
                self._lent.hold(partition)
            return False
        return self._reply(partition, sock, reply)

    def _serve_last_calls(self, partition: int) -> None:
        for _ in range(LAST_CALLS_MAX):
            if not self._serve(partition):
                break

    def _kill_soon(self, partition: int) -> None:
        """A process that ends closes its socket shortly before; it shall end with its own exit status."""
        process = self._processes.get(partition)

        def kill() -> None:  # this one: by then the root may have a successor
            if process is not None and self._processes.get(partition) is process:
                process.kill()

        self.loop.after(EXIT_GRACE_MS, kill)

    def _decide(self, partition: int, packet: codec.Packet) -> tuple[Reply, list[Effect]]:
        if not self.host.has_room_for(packet.fds):
            return Reply(HvStatus.NO_RESOURCES), []
        try:
            message = codec.decode(packet.data)
        except codec.DecodeError:
            message = None
        match message:
            case [code, args]:
                return self.hypervisor.handle(partition, code, args, len(packet.fds), now_ns())
            case _:
                return Reply(HvStatus.INVALID_HYPERCALL_INPUT), []

    def _reply(self, partition: int, sock: socket.socket, reply: Reply) -> bool:
        try:
            if reply.handles:
                with self.host.descriptors(reply.handles) as fds:
                    codec.send_message(sock, [int(reply.status), reply.values], fds)
            else:
                packet = _DONE if reply is DONE else codec.encode([int(reply.status), reply.values])
                codec.send_packet(sock, packet)
        except BlockingIOError:
            self._cut_off(partition)
            return False
        except OSError:  # gone; its end of file is next
            pass
        return True

    def _cut_off(self, partition: int) -> None:  # it asks, and does not read the answers
        self.signal(partition, signal.SIGKILL)
        self._sockets.close(partition)

    # -- effects -------------------------------------------------------------------------------------------

    def carry_out(self, effects: list[Effect], fds: list[int] | None = None) -> bool:
        """In order. True: the call's descriptors were kept."""
        kept = False
        for effect in effects:
            match effect:
                case CompleteCall(partition, reply):
                    if (sock := self._sockets.let_go(partition)) is not None:
                        self._reply(partition, sock, reply)
                case KeepFiles(partition):
                    assert fds
                    self.host.keep_files(partition, fds)
                    kept = True
                case SpawnPartition(partition, path, module):
                    self._spawn(partition, path, module)
                case KillPartition(partition):
                    self._kill(partition)
                case ReplaceRoot():
                    self._spawning.add(ROOT_PARTITION)
                    self.standby.want()
                case ArmTimers(when_ns):
                    self._clockwork.arm(when_ns)
                case CheckHeartbeat(partition, after_ms):
                    self._clockwork.check_heartbeat(partition, after_ms)
                case SuspendPartition(partition, suspended):
                    self.signal(partition, signal.SIGSTOP if suspended else signal.SIGCONT)
                case RefreshStatistics(after_ms):
                    self._clockwork.refresh_statistics(after_ms)
                case Announce(kind, fields):
                    self._announce(kind, fields)
                case Halt(reason):
                    self.halted = self.halted or reason
                case _:
                    self.host.carry_out(effect)
        return kept

    def _kill(self, partition: int) -> None:
        if (process := self._processes.get(partition)) is not None:
            process.kill()
        else:
            self._doomed.add(partition)
        self._sockets.close(partition)

    # -- processes -----------------------------------------------------------------------------------------

    def _add_process(self, process: WatchedProcess) -> None:
        self._processes[process.partition] = process
        self.loop.watch(process.pidfd, lambda events: self._ended(process))

    def _ended(self, process: WatchedProcess) -> None:
        if not process.has_ended:  # an event of this descriptor's number's last owner
            return
        partition = process.partition
        self._serve_last_calls(partition)
        self._sockets.close(partition)
        status = process.reap()
        self.loop.drop(process.pidfd)
        process.close()
        del self._processes[partition]
        self._orphans.soon()
        reason = str(status) if status is not None else "its process ended"
        self.carry_out(self.hypervisor.process_exited(partition, status, reason, now_ns()))

    def _known_pids(self) -> set[int] | None:
        """None: a child that we do not know may be the one we wait for."""
        if self._spawning or self.standby.is_on_its_way:
            return None
        known = {process.pid for process in self._processes.values()}
        if self.standby.pid is not None:
            known.add(self.standby.pid)
        if self.zygote.pid is not None:
            known.add(self.zygote.pid)
        return known

    # -- the zygote ----------------------------------------------------------------------------------------

    def _zygote_answered(self, answer: Spawned | SpawnFailed) -> None:
        match answer:
            case Spawned(partition, pid) if partition == STANDBY_ID:
                self.standby.spawned(pid)
            case SpawnFailed(partition, reason) if partition == STANDBY_ID:
                self.standby.spawn_failed(reason)
            case Spawned(partition, pid) if partition in self._spawning:
                self._spawning.discard(partition)
                self._spawned(partition, pid)
            case SpawnFailed(partition, reason) if partition in self._spawning:
                self._spawn_fails(partition, reason)

    def _zygote_lost(self, reason: str) -> None:
        for partition in self._spawning - {ROOT_PARTITION}:
            self._spawn_fails(partition, reason)
        self.standby.spawn_failed(reason)

    def _spawn(self, partition: int, path: str, module: str) -> None:
        self._spawning.add(partition)
        try:
            sock = self._ask_zygote(partition, path, module)
        except OSError as error:
            self._spawn_fails(partition, f"it cannot be spawned: {error}")
        else:
            self._sockets.add(partition, sock)

    def _ask_zygote(self, spawn_id: int, path: str, module: str) -> socket.socket:
        """Our end of the hypercall socket; the answer comes later. Raises: OSError."""
        grant = granted_to_process(self.hypervisor.machine, spawn_id)
        return self.zygote.ask(spawn_id, path, module, grant, self._console())

    def _console(self) -> int:
        if self._console_fd is None:
            return os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        return os.dup(self._console_fd)

    def _spawned(self, partition: int, pid: int) -> None:
        try:
            # Whatever happened to it meanwhile: nobody but us reaps it, so the pid is still its own.
            pidfd = os.pidfd_open(pid)
        except OSError as error:
            self._spawning.add(partition)
            self._spawn_fails(partition, f"no pidfd of {pid}: {error}")
            return
        self._started(WatchedProcess(partition, pid, pidfd))
        if partition not in self._sockets:  # closed already
            self._kill_soon(partition)

    def _started(self, process: WatchedProcess) -> None:
        partition = process.partition
        self._add_process(process)
        self.carry_out(self.hypervisor.process_started(partition, process.pid, now_ns()))
        if partition in self._doomed:
            self._doomed.discard(partition)
            self._kill(partition)

    def _spawn_fails(self, partition: int, reason: str) -> None:
        """Reported by the loop: the effects that asked for the spawn may not be carried out to the end yet."""
        self.loop.after(0, lambda: self._spawn_failed(partition, reason))

    def _spawn_failed(self, partition: int, reason: str) -> None:
        if partition in self._spawning:
            self._spawning.discard(partition)
            self._doomed.discard(partition)
            self._sockets.close(partition)
            self.carry_out(self.hypervisor.process_exited(partition, _SPAWN_FAILED, reason, now_ns()))

    # -- the root's successor ------------------------------------------------------------------------------

    def spawn_standby(self) -> socket.socket | None:
        if self.halted is not None:
            return None
        try:
            return self._ask_zygote(STANDBY_ID, "root", ROOT_MODULE)
        except OSError:
            return None

    def standby_waits(self, pid: int) -> None:
        self._announce("root.standby", {"pid": pid})

    def standby_takes_over(self, process: WatchedProcess, sock: socket.socket) -> None:
        """From here on its calls are answered, the first of which has been waiting."""
        self._spawning.discard(ROOT_PARTITION)
        self._sockets.add(ROOT_PARTITION, sock)
        self._started(process)

    def standby_lost(self, reason: str) -> None:
        self._spawn_fails(ROOT_PARTITION, reason)

    def standby_died(self) -> None:
        self._orphans.soon()
