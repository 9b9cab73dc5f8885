"""The `partvisor` command with a stand-in for runtime.machine.run: a machine that boots nothing.

What it does follows from the machine's name: "fails" cannot boot, "crashes" has a bug, "dies" is killed while it
boots; any other runs until it is stopped or gets SIGINT or SIGTERM.
"""

import os
import signal
import sys
import types
from collections.abc import Mapping
from typing import Any

import trio

from runtime.cli import main
from runtime.config.model import MachineConfig
from runtime.exits import CommandError
from runtime.machine.held_signals import obeyed_signals
from runtime.machine.machine_control import ControlError
from runtime.machine.management import serve_management
from runtime.machine.management_wire import ManagementStatus
from runtime.machine.run_options import RunOptions


class Control:
    def __init__(self, config: MachineConfig, options: RunOptions) -> None:
        self._config, self._options = config, options
        self.stopped = trio.Event()

    async def status(self) -> Mapping[str, Any]:
        return {"name": self._config.machine.name}

    async def list_partitions(self) -> list[Mapping[str, Any]]:
        return [
            {"name": partition.name, "state": "active", "memory_bytes": int(partition.memory), "parent": None}
            for partition in self._config.partitions
        ]

    async def show(self, name: str) -> Mapping[str, Any]:
        for partition in await self.list_partitions():
            if partition["name"] == name:
                return {**partition, "devices": [{"name": "disk0", "requests": 3}], "rings": {"in": 1}}
        raise ControlError(ManagementStatus.NOT_FOUND, f"no partition named {name!r}")

    async def kill(self, name: str) -> None:
        await self.show(name)
        self._options.log.append("partition.ended", name, reason="killed\x1b[2J")

    async def stop(self) -> None:
        self.stopped.set()


async def run_machine(config: MachineConfig, options: RunOptions) -> int:
    name = config.machine.name
    options.log.append("machine.powered_on")
    control = Control(config, options)
    async with trio.open_nursery() as nursery:
        await nursery.start(serve_management, control, options.folder, options.log)
        if name == "fails":
            nursery.cancel_scope.cancel()
        elif name == "crashes":
            raise RuntimeError("a bug")
        elif name == "dies":
            os.kill(os.getpid(), signal.SIGKILL)
        else:
            await nursery.start(_obey_signals, control)
            options.log.append("machine.ready")
            options.announce_ready()
            await control.stopped.wait()
            options.log.append("machine.stopped")
            nursery.cancel_scope.cancel()
    if name == "fails":
        raise CommandError("partition child: can't open the source: No such file or directory")
    return 0


async def _obey_signals(
    control: Control, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        task_status.started()
        with obeyed_signals():
            async for _ in signals:
                control.stopped.set()


if __name__ == "__main__":
    stand_in = types.ModuleType("runtime.machine.run")
    stand_in.__dict__["run_machine"] = run_machine
    sys.modules["runtime.machine.run"] = stand_in
    sys.exit(main())
