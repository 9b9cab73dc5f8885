"""What an operator does to a machine that runs beyond looking at it: one management verb, `operate`, with a table.

| operation | name | order | result |
|---|---|---|---|
| device-add | a partition | {device, attachment}: see runtime.machine.device_plug | {device} |
| device-remove | a partition | {device} | {device, forced, let_go} |
| device-list | "" | {} | {devices: [...]} |
| pause, resume | a partition; "": the whole machine | {} | {names: [...]}: who is, and was not before |
| save | a partition | {path, go_on} | {path, bytes, state_bytes, ...}: see runtime.machine.saving |
| restore | a partition | {path} | {path} |
| errors | "" | {device?} | {errors: [...]}: runtime.machine.hardware_errors |
"""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import msgspec

from runtime.machine import saving
from runtime.machine.events import Event
from runtime.machine.hardware_errors import HardwareErrors
from runtime.machine.platform import Platform
from runtime.machine.questions import RequestRefused

_Operation = Callable[[str, Mapping[str, Any]], Awaitable[Mapping[str, Any]]]


class Operations:
    """Of one machine."""

    def __init__(self, platform: Platform) -> None:
        self._platform = platform
        self._errors = HardwareErrors(platform.log, lambda: platform.config)
        platform.log.listen(self._look)
        self._table: Mapping[str, _Operation] = {
            "device-add": platform.plug.add,
            "device-remove": platform.plug.remove,
            "device-list": self._list_devices,
            "pause": lambda name, order: self._power("pause", name),
            "resume": lambda name, order: self._power("resume", name),
            "save": lambda name, order: saving.save(platform, name, order),
            "restore": lambda name, order: saving.restore(platform, name, order),
            "errors": self._list_errors,
        }

    async def perform(self, operation: str, name: str, order: Mapping[str, Any]) -> Mapping[str, Any]:
        """RequestRefused, OSError: it can't be done now. KeyError, TypeError, ValueError: an order that is none."""
        if operation not in self._table:
            raise RequestRefused(f"{operation[:40]!r} is no operation; there are {', '.join(self._table)}")
        try:
            return await self._table[operation](name, order)
        except (KeyError, TypeError, ValueError) as error:
            raise RequestRefused(f"an order that is none: {error!r}"[:200]) from error

    async def _list_devices(self, name: str, order: Mapping[str, Any]) -> Mapping[str, Any]:
        return self._platform.plug.describe()

    async def _list_errors(self, name: str, order: Mapping[str, Any]) -> Mapping[str, Any]:
        device = order.get("device")
        return {"errors": [row for row in self._errors.rows() if device in (None, row["device"])]}

    async def _power(self, verb: str, name: str) -> Mapping[str, Any]:
        """By the hypervisor, so it works whatever the root does."""
        names = (await self._platform.ask_hypervisor(verb, **({"name": name} if name else {})))["names"]
        for each in names:
            self._platform.log.append(f"partition.{verb}d", each)
        if not name and names:
            self._platform.log.append(f"machine.{verb}d")
        return {"names": names}

    def _look(self, event: Event, _: bytes) -> None:
        """Who was restored is not restored again by a reboot: its disks are not as they were."""
        if event.kind == "machine.ready":
            config = self._platform.config
            partitions = tuple(msgspec.structs.replace(one, restore=None) for one in config.partitions)
            self._platform.config = msgspec.structs.replace(config, partitions=partitions)
