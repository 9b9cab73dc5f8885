"""One machine with everything around it: its management sockets, its signals, its exit code."""

import contextlib
import signal
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

import trio

from runtime.config import MachineConfig
from runtime.exits import ExitCode
from runtime.machine_description import MachineFailed
from runtime.management import ControlError, ManagementStatus, serve_management
from runtime.platform import Outcome, Platform, RequestRefused

if TYPE_CHECKING:
    from runtime.launch import RunOptions

ROOT_ANSWER_MS_MAX: Final = 1_000  # a root that is slower is shown without its devices


async def run_machine(config: MachineConfig, options: "RunOptions") -> int:
    """Run one machine with its management sockets and signals, until it ends. Returns the exit code.

    Raises:
        MachineFailed: it could not start or went down by itself.
    """
    platform = Platform(config, options.log)
    interrupted = False

    async def obey_signals() -> None:
        nonlocal interrupted
        with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM, signal.SIGHUP) as signals:
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
        await nursery.start(serve_management, PlatformControl(platform), options.folder, options.log)
        outcome = await platform.run(options.announce_ready)
        nursery.cancel_scope.cancel()
    if outcome is None or interrupted:
        return ExitCode.INTERRUPTED
    if outcome.failed:
        raise MachineFailed(outcome.reason)
    return ExitCode.DONE


class PlatformControl:
    """Answers what management asks (`management.MachineControl`), with the help of broker and root."""

    def __init__(self, platform: Platform) -> None:
        self._platform = platform

    async def status(self) -> Mapping[str, Any]:
        return self._platform.status()

    async def list_partitions(self) -> list[Mapping[str, Any]]:
        rows: list[Mapping[str, Any]] = []
        more = True
        while more:
            reply = await self._ask("list", after=rows[-1]["id"] if rows else 0)
            rows += reply["partitions"]
            more = bool(reply["more"] and reply["partitions"])
        return rows

    async def show(self, name: str) -> Mapping[str, Any]:
        partition = {
            key: value for key, value in (await self._ask("show", name=name)).items() if key != "request"
        }
        partition["privileges"] = f"{partition['privileges']:#x}"
        with trio.move_on_after(ROOT_ANSWER_MS_MAX / 1000), contextlib.suppress(OSError, RequestRefused):
            inspected = await self._platform.ask_root("inspect", name=name)
            partition["devices"] = inspected["devices"]
        return partition

    async def kill(self, name: str) -> None:
        await self._ask("kill", name=name)

    async def crash(self, how: str) -> None:
        try:
            await self._platform.crash_root(how)
        except RequestRefused as refused:
            raise ControlError(ManagementStatus.REFUSED, str(refused)) from refused

    async def seam(self, step: str, passes: int, deaths: int) -> None:
        try:
            await self._platform.arm_seam(step, passes, deaths)
        except RequestRefused as refused:
            raise ControlError(ManagementStatus.REFUSED, str(refused)) from refused

    async def service(self) -> None:
        try:
            await self._platform.service_root()
        except RequestRefused as refused:
            raise ControlError(ManagementStatus.REFUSED, str(refused)) from refused

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
