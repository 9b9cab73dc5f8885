"""One machine with everything around it: its management sockets, its signals, its exit code."""

import contextlib
import signal
from collections.abc import Mapping
from typing import Any, Final

import trio

from runtime.chaos.faults.desk import FaultDesk
from runtime.chaos.faults.orders import FaultRefused
from runtime.config.architecture import Architecture
from runtime.config.model import MachineConfig, to_tables
from runtime.exits import ExitCode
from runtime.machine.captures import serve_captures
from runtime.machine.debug_access import DebugAccess, debug_access
from runtime.machine.description import MachineFailed
from runtime.machine.held_signals import ENDING_SIGNALS, obeyed_signals
from runtime.machine.machine_control import ControlError
from runtime.machine.management import serve_management
from runtime.machine.management_wire import ManagementStatus
from runtime.machine.operations import Operations
from runtime.machine.outcome import Outcome
from runtime.machine.platform import Platform
from runtime.machine.questions import RequestRefused
from runtime.machine.root_faults import arm_seam, crash, service_root
from runtime.machine.run_options import RunOptions
from runtime.machine.screen_doors import ScreenDoors
from runtime.machine.trace import machine_trace
from runtime.reserved_names import ROOT

ROOT_ANSWER_MS_MAX: Final = 1_000  # a root that is slower is shown without its devices


async def run_machine(config: MachineConfig, options: RunOptions) -> int:
    """Run one machine with its management sockets and signals, until it ends. Returns the exit code.

    Raises:
        MachineFailed: it could not start or went down by itself.
    """
    with (
        machine_trace(config, options.trace, options.trace_stamps) as trace,
        debug_access(options.folder, trace) as debug,
    ):
        platform = Platform(config, options.log, debug)
        screens = ScreenDoors(config, options.log)
        with platform.sockets.opened(config, options.folder.path), screens.opened(options.folder):
            return await _run(platform, options, debug, screens)


async def _run(platform: Platform, options: RunOptions, debug: DebugAccess, screens: ScreenDoors) -> int:
    interrupted = False

    async def obey_signals() -> None:
        nonlocal interrupted
        with trio.open_signal_receiver(*ENDING_SIGNALS) as signals, obeyed_signals():
            task_started.set()
            async for number in signals:
                if interrupted:  # asked twice: no grace
                    nursery.cancel_scope.cancel()
                    return
                interrupted = True
                platform.stop(f"stopped by {signal.Signals(number).name}")

    task_started = trio.Event()
    outcome: Outcome | None = None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(obey_signals)
        await task_started.wait()
        desk = FaultDesk(platform, nursery, options.folder.management_path)
        await nursery.start(platform.consoles.serve, options.folder)
        await nursery.start(serve_captures, options.folder, platform.tell_root)
        await nursery.start(platform.streams.serve, options.folder)
        nursery.start_soon(screens.serve, platform.tell_root)
        control = PlatformControl(platform, desk, screens)
        await nursery.start(serve_management, control, options.folder, options.log)
        outcome = await platform.run(options.announce_ready)
        nursery.cancel_scope.cancel()
    if debug.trace is not None and options.trace is not None:
        debug.trace.write(options.trace, options.log)
    if options.post_mortem is not None and (outcome is None or outcome.failed):
        debug.write_post_mortem(options.post_mortem, options.log)
    if outcome is None or interrupted:
        return ExitCode.INTERRUPTED
    if outcome.failed:
        raise MachineFailed(outcome.reason)
    return ExitCode.DONE


class PlatformControl:
    """Answers what management asks (`machine_control.MachineControl`), with the help of broker and root."""

    def __init__(self, platform: Platform, desk: FaultDesk, screens: ScreenDoors) -> None:
        self._platform, self._desk, self._screens = platform, desk, screens
        self._operations = Operations(platform)

    async def operate(self, operation: str, name: str, order: Mapping[str, Any]) -> Mapping[str, Any]:
        try:
            return await self._operations.perform(operation, name, order)
        except (OSError, RequestRefused) as refused:
            raise ControlError(ManagementStatus.REFUSED, str(refused)) from refused

    async def status(self) -> Mapping[str, Any]:
        return self._platform.status()

    async def list_partitions(self) -> list[Mapping[str, Any]]:
        rows: list[Mapping[str, Any]] = []
        more = True
        while more:
            reply = await self._ask("list", after=rows[-1]["id"] if rows else 0)
            rows += [{**row, "kind": self._kind(row)} for row in reply["partitions"]]
            more = bool(reply["more"] and reply["partitions"])
        return rows

    def _kind(self, row: Mapping[str, Any]) -> str:
        if row["parent"] is None:
            return "root"
        return "driver" if row["name"] in self._platform.config.drivers else "guest"

    async def show(self, name: str) -> Mapping[str, Any]:
        partition = {
            key: value for key, value in (await self._ask("show", name=name)).items() if key != "request"
        }
        partition["kind"] = self._kind(partition)
        partition["privileges"] = f"{partition['privileges']:#x}"
        if (addresses := self._screens.addresses_of(name)) is not None:
            partition["screen"] = dict(addresses)
        is_paused = partition["process"] == "paused"
        with trio.move_on_after(ROOT_ANSWER_MS_MAX / 1000), contextlib.suppress(OSError, RequestRefused):
            inspected = await self._platform.ask_root("inspect", name=name)
            if inspected.get("heartbeat") is not None:
                partition["heartbeat"] = "paused" if is_paused else inspected["heartbeat"]
            pids: dict[str, int | None] = {}
            for row in inspected["devices"]:
                for server in row.get("served_by", ()):
                    pids[server] = (await self._ask("show", name=server))["pid"]
            partition["devices"] = [
                {key: value for key, value in self._with_processes(row, pids).items() if key != "memory"}
                for row in inspected["devices"]
            ]
        return partition

    async def memory(self, name: str) -> list[Mapping[str, Any]]:
        try:
            with trio.fail_after(ROOT_ANSWER_MS_MAX / 1000):
                inspected = await self._platform.ask_root("inspect", name=name)
        except (OSError, RequestRefused, trio.TooSlowError) as error:
            why = str(error) or f"within {ROOT_ANSWER_MS_MAX} ms"
            raise ControlError(ManagementStatus.REFUSED, f"the root does not answer: {why}") from error
        return [
            {"device": row["device"], "gpfn": gpfn, "pages": pages}
            for row in inspected["devices"]
            for gpfn, pages in row.get("memory", ())
        ]

    async def integration(self, name: str, service: str, order: Mapping[str, Any]) -> Mapping[str, Any]:
        try:
            answer = await self._platform.ask_root("integration", name=name, service=service, order=order)
        except (OSError, RequestRefused) as refused:
            raise ControlError(ManagementStatus.REFUSED, str(refused)) from refused
        return {key: value for key, value in answer.items() if key != "request"}

    async def config(self) -> Mapping[str, Any]:
        return to_tables(self._platform.config)

    def _with_processes(self, row: Mapping[str, Any], pids: Mapping[str, int | None]) -> Mapping[str, Any]:
        """Who serves a device: by which processes a request goes, in order."""
        if "served_by" not in row:
            return row
        resident = self._platform.config.machine.architecture is Architecture.MONOLITHIC
        name = "pv-hypervisor" if resident and row["served_by"] != [ROOT] else None
        served = [{"process": name or f"pv-{server}", "pid": pids[server]} for server in row["served_by"]]
        return {**row, "served_by": served}

    async def kill(self, name: str) -> None:
        await self._ask("kill", name=name)

    async def crash(self, how: str) -> None:
        try:
            await crash(self._platform, ROOT, how)
        except RequestRefused as refused:
            raise ControlError(ManagementStatus.REFUSED, str(refused)) from refused

    async def seam(self, step: str, passes: int, deaths: int) -> None:
        try:
            await arm_seam(self._platform, step, passes, deaths)
        except RequestRefused as refused:
            raise ControlError(ManagementStatus.REFUSED, str(refused)) from refused

    async def crash_driver(self, name: str, how: str) -> None:
        self._check_driver(name)
        try:
            await crash(self._platform, name, how)
        except RequestRefused as refused:
            raise ControlError(ManagementStatus.REFUSED, str(refused)) from refused

    async def seam_driver(self, name: str, step: str, passes: int, deaths: int) -> None:
        self._check_driver(name)
        try:
            await arm_seam(self._platform, step, passes, deaths, name)
        except RequestRefused as refused:
            raise ControlError(ManagementStatus.REFUSED, str(refused)) from refused

    def _check_driver(self, name: str) -> None:
        drivers = self._platform.config.drivers
        if name not in drivers:
            there_are = f"; there are {', '.join(drivers)}" if drivers else ", for this machine has none"
            raise ControlError(ManagementStatus.NOT_FOUND, f"{name[:40]!r} is no driver partition{there_are}")

    async def inject(self, order: Mapping[str, Any]) -> int:
        try:
            return await self._desk.inject(order)
        except FaultRefused as refused:
            raise ControlError(ManagementStatus.REFUSED, str(refused)) from refused

    async def heal(self, number: int | None) -> None:
        try:
            await self._desk.heal(number)
        except FaultRefused as refused:
            raise ControlError(ManagementStatus.NOT_FOUND, str(refused)) from refused

    async def injected(self) -> list[Mapping[str, Any]]:
        return await self._desk.injected()

    async def service(self) -> None:
        try:
            await service_root(self._platform)
        except RequestRefused as refused:
            raise ControlError(ManagementStatus.REFUSED, str(refused)) from refused

    async def interrupts(self, name: str) -> list[Mapping[str, Any]]:
        named = {"name": name} if name else {}
        rows: list[Mapping[str, Any]] = []
        more = True
        while more:
            reply = await self._ask("ports", after=rows[-1]["key"] if rows else 0, **named)
            rows += reply["rows"]
            more = bool(reply["more"] and reply["rows"])
        return [{key: value for key, value in row.items() if key != "key"} for row in rows]

    async def sched(self) -> Mapping[str, Any]:
        reply = dict(await self._ask("sched"))
        rows = list(reply["partitions"])
        while reply["more"] and rows:
            reply = dict(await self._ask("sched", after=rows[-1]["id"]))
            rows += reply["partitions"]
        return {key: value for key, value in reply.items() if key not in ("request", "more")} | {
            "partitions": rows
        }

    async def schedule(self, name: str, shares: Mapping[str, Any]) -> None:
        allowed = {"weight", "reserve", "cap"}
        if not shares.keys() <= allowed or not all(type(value) is int for value in shares.values()):
            problem = f"shares are whole numbers of {', '.join(sorted(allowed))}"
            raise ControlError(ManagementStatus.BAD_REQUEST, problem)
        await self._ask("show", name=name)  # NOT_FOUND, if it is not there
        try:
            await self._ask("schedule", name=name, **shares)
        except ControlError as error:
            raise ControlError(ManagementStatus.REFUSED, error.message) from error

    async def reboot(self) -> None:
        try:
            await self._platform.reboot()
        except RequestRefused as refused:
            raise ControlError(ManagementStatus.REFUSED, str(refused)) from refused

    async def hypervisor(self) -> Mapping[str, Any]:
        reply = await self._ask("hypervisor")
        return {key: value for key, value in reply.items() if key != "request"}

    async def stop(self) -> None:
        self._platform.stop("stopped by request")

    async def _ask(self, verb: str, **values: object) -> Mapping[str, Any]:
        try:
            return await self._platform.ask_hypervisor(verb, **values)
        except RequestRefused as refused:
            raise ControlError(ManagementStatus.NOT_FOUND, str(refused)) from refused
        except OSError as error:
            raise ControlError(
                ManagementStatus.REFUSED, f"the hypervisor does not answer: {error}"
            ) from error
