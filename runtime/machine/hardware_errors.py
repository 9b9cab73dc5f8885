"""Hardware error records, as a machine's management controller keeps them: bounded, and whoever has died since.

Who drives a device counts its errors, and says so on its console line (partitions.hardware.watch). The platform knows
who spoke: a device's errors are told by the root, by the driver partition that has its name, or by the partition that
it is assigned to, and by nobody else.
"""

from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, Final

import msgspec

from runtime.config.model import MachineConfig
from runtime.machine.events import Event, EventLog
from runtime.reserved_names import ROOT

RECORDS_MAX: Final = 256  # of a machine; the one that was heard of longest ago goes first
KIND: Final = "hardware.error"
_BY_DRIVER: Final = f"guest.{KIND}"  # what a partition says stays within `guest.`


class HardwareError(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All errors of one kind that one device has had, under one process that drove it."""

    source: str  # "storage", "network"
    device: str
    operation: str  # "read", "write", "flush", "discard", "transmit", "receive"
    errno: int
    severity: str  # "corrected", "recoverable", "fatal": those of UEFI's common platform error record
    count: int  # at the least: of many, each doubling is told
    first_ns: int  # since 1970
    last_ns: int
    policy: str  # the config's on_error
    condition: str  # of the device from then on: "well", "degraded", "removed"
    generation: int = 0  # of the process that drove it: the root's first is 0, a driver partition's 1

    @property
    def key(self) -> tuple[object, ...]:
        return self.device, self.operation, self.errno, self.severity, self.generation


class HardwareErrors:
    """Listens to a machine's log from its beginning."""

    def __init__(self, log: EventLog, config: Callable[[], MachineConfig]) -> None:
        self._log, self._config = log, config
        self._records: OrderedDict[tuple[object, ...], HardwareError] = OrderedDict()
        self._generations: dict[str, int] = {}  # by who drives
        log.listen(self._look)

    def rows(self) -> list[Mapping[str, Any]]:
        """Oldest first."""
        return [msgspec.structs.asdict(record) for record in self._records.values()]

    def _look(self, event: Event, _: bytes) -> None:
        match event.kind:
            case "root.started" | "driver.serving":
                who = ROOT if event.kind == "root.started" else str(event.fields.get("device"))
                generation = event.fields.get("generation")
                self._generations[who] = generation if isinstance(generation, int) else 0
            case kind if kind == KIND and event.partition == ROOT and "generation" not in event.fields:
                self._take(event.fields, ROOT)
            case kind if kind == _BY_DRIVER and event.partition is not None:
                if self._drives(event.partition, event.fields.get("device")):
                    self._take(event.fields, event.partition)

    def _drives(self, partition: str, device: object) -> bool:
        config = self._config()
        return (device == partition and partition in config.drivers) or any(
            each.name == device and each.assigned_to == partition for each in config.root.devices
        )

    def _take(self, fields: Mapping[str, Any], who: str) -> None:
        """What is no record is left out: a driver may say what it likes."""
        try:
            record = msgspec.convert({**fields, "generation": self._generations.get(who, 0)}, HardwareError)
        except msgspec.ValidationError:
            return
        self._records[record.key] = record
        self._records.move_to_end(record.key)
        while len(self._records) > RECORDS_MAX:
            self._records.popitem(last=False)
        if who != ROOT:  # said for the machine, as the root would have
            self._log.append(KIND, who, **msgspec.structs.asdict(record))
