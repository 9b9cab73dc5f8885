"""The verbs of the management socket: the arguments of each, and what it asks of the machine.

| verb | args | result |
|---|---|---|
| status | | what `MachineControl.status` returns |
| list | | {partitions: [...]} |
| show | name | what `MachineControl.show` returns |
| kill | name | {} once the partition's end is on its way |
| crash | how | {} once the root has been broken so: kill, hang, stuck |
| seam | step, passes, deaths | {} once the root has been told to die at a named step (bus.seam) |
| crash-driver | name, how | as crash, for a driver partition |
| seam-driver | name, step, passes, deaths | as seam, for a driver partition |
| inject | order | {number}; an order as runtime.chaos.faults.orders has it |
| heal | number | {} once that fault is undone; 0: all of them |
| injected | | {injected: [{order, passes, fired}]}: what is armed |
| service | | {} once the root has been asked to make room for its successor |
| interrupts | name | {ports: [...]}: every port of that partition, or of all for "", and its accounting |
| sched | | what `MachineControl.sched` returns: who has had how much of the processors |
| schedule | name, shares | {} once the partition's weight, reserve or cap has changed |
| hypervisor | | what `MachineControl.hypervisor` returns: its size, memory, calls |
| memory | name | {memory: [...]}: what the root uses which pages of that partition for |
| integration | name, service, order | what partitions.integration.control says: kvp, vss, shutdown |
| operate | operation, name, order | what runtime.machine.operations says: devices that come and go, power, errors |
| config | | the config that the machine was started with, as tables |
| reboot | | {} once every partition is being ended; "machine.rebooted" says that they are back |
| stop | | {} once the machine's end is on its way; it is over when the folder's lock is free |
| events | since | {events: [...], last_sequence}: kept events after number `since`, oldest first |
| cancel | request | {cancelled}: whether that request of the same client's, a save or restore, is being given up |
"""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from runtime.machine.machine_control import MachineControl

Arguments = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Verb:
    arguments: Mapping[str, type]
    """By name. All have to be there, and nothing else."""

    ask: Callable[[MachineControl, Arguments], Awaitable[Any]]
    """Raises ControlError."""

    result: str | None = None
    """By which name the answer is given; None: it is a map already, or there is none."""

    async def perform(self, control: MachineControl, args: Arguments) -> Mapping[str, Any]:
        answer = await self.ask(control, args)
        if self.result is not None:
            return {self.result: answer}
        return {} if answer is None else answer


_NAME: Final = {"name": str}
_SEAM: Final = {"step": str, "passes": int, "deaths": int}

VERBS: Final[Mapping[str, Verb]] = {
    "status": Verb({}, lambda control, _: control.status()),
    "list": Verb({}, lambda control, _: control.list_partitions(), "partitions"),
    "show": Verb(_NAME, lambda control, args: control.show(**args)),
    "kill": Verb(_NAME, lambda control, args: control.kill(**args)),
    "crash": Verb({"how": str}, lambda control, args: control.crash(**args)),
    "seam": Verb(_SEAM, lambda control, args: control.seam(**args)),
    "crash-driver": Verb(_NAME | {"how": str}, lambda control, args: control.crash_driver(**args)),
    "seam-driver": Verb(_NAME | _SEAM, lambda control, args: control.seam_driver(**args)),
    "inject": Verb({"order": dict}, lambda control, args: control.inject(**args), "number"),
    "heal": Verb({"number": int}, lambda control, args: control.heal(args["number"] or None)),
    "injected": Verb({}, lambda control, _: control.injected(), "injected"),
    "service": Verb({}, lambda control, _: control.service()),
    "interrupts": Verb(_NAME, lambda control, args: control.interrupts(**args), "ports"),
    "sched": Verb({}, lambda control, _: control.sched()),
    "schedule": Verb(_NAME | {"shares": dict}, lambda control, args: control.schedule(**args)),
    "hypervisor": Verb({}, lambda control, _: control.hypervisor()),
    "memory": Verb(_NAME, lambda control, args: control.memory(**args), "memory"),
    "integration": Verb(
        _NAME | {"service": str, "order": dict}, lambda control, args: control.integration(**args)
    ),
    "operate": Verb(
        {"operation": str} | _NAME | {"order": dict}, lambda control, args: control.operate(**args)
    ),
    "config": Verb({}, lambda control, _: control.config()),
    "reboot": Verb({}, lambda control, _: control.reboot()),
    "stop": Verb({}, lambda control, _: control.stop()),
}  # and "events" and "cancel", which the server of the socket answers itself
