"""Adding devices to a machine that runs, and taking them away: the platform's part.

The machine's config says afterwards what there is, so that a reboot, or whoever asks for the config, finds it. What is
added is checked as a config file is. A backing file is opened here, with the rights of the user: the root gave away the
right to open what it was not told of at its start.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Protocol

import msgspec
import trio

from runtime import codec
from runtime.config.devices import BackendKind, DeviceConfig, DeviceKind
from runtime.config.document import Document
from runtime.config.loading import convert
from runtime.config.model import MachineConfig, to_tables
from runtime.config.validate import find_problems
from runtime.machine import host_interfaces
from runtime.machine.console_lines import ConsoleLines
from runtime.machine.events import Event, EventLog
from runtime.machine.questions import RequestRefused
from runtime.reserved_names import ROOT

ASKED_MAX: Final = 8  # times, where one root after another dies over it
_SOURCE: Final = "device"


class Pluggable(Protocol):
    """The platform, as far as devices are added to it: what there is, and whom to ask."""

    config: MachineConfig
    log: EventLog
    consoles: ConsoleLines

    async def ask_root(
        self, verb: str, fds: Sequence[int] = (), /, **values: object
    ) -> Mapping[str, Any]: ...

    async def tell_root(
        self, verb: str, values: Mapping[str, object] | None = None, fds: Sequence[int] = ()
    ) -> None: ...


class DevicePlug:
    """Of one machine."""

    def __init__(self, machine: Pluggable) -> None:
        self._machine = machine
        self._one_at_a_time = trio.Lock()
        self._rebooting = False
        machine.log.listen(self._look)

    def _look(self, event: Event, _: bytes) -> None:
        """A device whose partition has ended is the root's. Not so in a reboot: there all is as it was."""
        if event.kind in ("machine.rebooting", "machine.rebooted"):
            self._rebooting = event.kind == "machine.rebooting"
        elif event.kind == "device.returned" and event.partition == ROOT and not self._rebooting:
            config = self._machine.config
            devices = tuple(
                msgspec.structs.replace(one, assigned_to=None)
                if one.name == event.fields.get("device")
                else one
                for one in config.root.devices
            )
            root = msgspec.structs.replace(config.root, devices=devices)
            self._machine.config = msgspec.structs.replace(config, root=root)

    async def add(self, name: str, order: Mapping[str, Any]) -> Mapping[str, Any]:
        """Offer a device to the partition `name`. RequestRefused: nothing has changed.

        Args:
            order: {device, attachment}: a [[root.device]] table, or only {name} of one that is there; and what stands
                in a [[partition.device]] table beside the name.
        """
        async with self._one_at_a_time:
            config = self._planned(name, dict(order["device"]), dict(order["attachment"]))
            device = config.device(str(order["device"]["name"]))
            is_new = device not in self._machine.config.root.devices
            if not is_new:
                fds: list[int] = []
            else:
                fds = self._open(device)
            tables = to_tables(config)
            table = next(one for one in tables["root"]["device"] if one["name"] == device.name)
            partition = next(one for one in tables["partition"] if one["name"] == name)
            attachment = next(one for one in partition["device"] if one["name"] == device.name)
            self._machine.consoles.add(name, device)
            answer = await self._ask(
                {"operation": "add", "name": name, "device": table, "attachment": attachment}, fds
            )
            self._machine.config = config
        return {"device": answer["device"]}

    async def remove(self, name: str, order: Mapping[str, Any]) -> Mapping[str, Any]:
        """Take {device} from the partition `name`; out of the machine, where no other has it."""
        async with self._one_at_a_time:
            device = str(order["device"])
            answer = await self._ask({"operation": "remove", "name": name, "device": device}, [])
            self._machine.config = _without(self._machine.config, name, device)
        return {key: answer[key] for key in ("device", "forced", "let_go")}

    def describe(self) -> Mapping[str, Any]:
        """Every device of the root's, and who has it."""
        config = self._machine.config
        return {
            "devices": [
                {
                    "device": device.name,
                    "kind": str(device.kind),
                    "backend": device.driver or (str(device.backend) if device.backend else None),
                    "path": str(device.path) if device.path else None,
                    "partitions": [
                        partition.name
                        for partition in config.partitions
                        if partition.parent == ROOT
                        and any(one.name == device.name for one in partition.devices)
                    ],
                }
                for device in config.root.devices
            ]
        }

    async def reopen(self, device: str) -> None:
        """The root wants what is behind one that was added, or came back, once more: another process is to have it."""
        fds: list[int] = []
        values: dict[str, object] = {"device": device}
        try:
            fds = self._open(self._machine.config.device(device))
        except KeyError:
            values["reason"] = "it is no device of this machine any more"
        except RequestRefused as refused:
            values["reason"] = str(refused)
        try:
            await self._machine.tell_root("backing", values, fds)
        except OSError:  # that root is gone, and its successor may open the file itself
            pass
        finally:
            codec.close_all(fds)

    def _planned(self, name: str, device: dict[str, Any], attachment: dict[str, Any]) -> MachineConfig:
        """The machine's config with it."""
        before = self._machine.config
        if not any(one.name == name and one.parent == ROOT for one in before.partitions):
            raise RequestRefused(f"no partition {name[:80]!r} of the root's own is configured")
        tables = _without_nulls(to_tables(before))
        there = {one["name"]: one for one in tables.setdefault("root", {}).setdefault("device", [])}
        called = str(device.get("name"))
        if called not in there:
            if "kind" not in device:
                raise RequestRefused(
                    f"the machine has no device {called[:80]!r}: say what it is, such as kind=disk"
                )
            tables["root"]["device"].append(device)
        elif len(device) > 1:
            raise RequestRefused(
                f"there is a device {called!r} already: leave out what it is, or choose a name"
            )
        for one in tables["partition"]:
            if one["name"] == name:
                if any(each["name"] == called for each in one.get("device", ())):
                    raise RequestRefused(f"{name} has {called} already")
                one["device"] = [*one.get("device", ()), {**attachment, "name": called}]
        document = Document(_SOURCE, Path("/"), "", tables)
        if problems := find_problems(document):
            raise RequestRefused("; ".join(problem.text(_SOURCE) for problem in problems[:3]))
        return convert(document)

    def _open(self, device: DeviceConfig) -> list[int]:
        """The backing file or interface, where there is one that is handed over. RequestRefused: it can't be opened."""
        if device.backend is BackendKind.TAP:
            return [self._open_interface(device)]
        is_file = device.driver is not None or (
            device.kind is DeviceKind.DISK and device.backend is BackendKind.FILE
        )
        if device.path is None or not is_file:
            return []
        flags = (os.O_RDONLY if device.read_only else os.O_RDWR) | os.O_CLOEXEC
        try:
            if device.size is not None and not device.read_only and not os.path.lexists(device.path):
                fd = os.open(device.path, flags | os.O_CREAT | os.O_EXCL, 0o600)
                os.ftruncate(fd, device.size)
                return [fd]
            return [os.open(device.path, flags)]
        except OSError as error:
            raise RequestRefused(f"device {device.name}: {device.path}: {error.strerror}") from error

    def _open_interface(self, device: DeviceConfig) -> int:
        assert device.interface is not None
        try:
            descriptor = host_interfaces.attach(device.interface)
        except OSError as error:
            raise RequestRefused(
                f"device {device.name}: {host_interfaces.remedy(device.interface, error)}"
            ) from error
        told = host_interfaces.bring_up(device.interface, device.mtu)
        self._machine.log.append("net.tap_ready", device=device.name, interface=device.interface, **told)
        return descriptor

    async def _ask(self, values: Mapping[str, object], fds: list[int]) -> Mapping[str, Any]:
        """The root, and if that dies over it, its successor. RequestRefused; OSError: there is none."""
        try:
            for asked in range(ASKED_MAX):
                answer = await self._ask_one({**values, "again": asked > 0}, fds)
                if answer is not None:
                    return answer
        finally:
            codec.close_all(fds)
        raise RequestRefused(f"{ASKED_MAX} roots have died over it")

    async def _ask_one(self, values: Mapping[str, object], fds: list[int]) -> Mapping[str, Any] | None:
        """None: another root has taken over, which may not have heard of it."""
        answers: list[Mapping[str, Any]] = []
        refusals: list[Exception] = []
        replaced = trio.Event()

        def look(event: Event, _: bytes) -> None:
            if event.kind == "root.restored":
                replaced.set()

        end = self._machine.log.listen(look)
        try:
            async with trio.open_nursery() as nursery:

                async def ask() -> None:
                    try:
                        answers.append(await self._machine.ask_root("device", fds, **values))
                    except (RequestRefused, OSError) as error:
                        refusals.append(error)
                    nursery.cancel_scope.cancel()

                nursery.start_soon(ask)
                await replaced.wait()
                nursery.cancel_scope.cancel()
        finally:
            end()
        for refusal in refusals:
            raise refusal
        return answers[0] if answers else None


def _without(config: MachineConfig, name: str, device: str) -> MachineConfig:
    tables = _without_nulls(to_tables(config))
    used = set()
    for one in tables["partition"]:
        if one["name"] == name:
            one["device"] = [each for each in one.get("device", ()) if each["name"] != device]
        used |= {each["name"] for each in one.get("device", ())}
        used |= {each.get("device") for each in one.get("emulated", ())}
    if device not in used:
        tables["root"]["device"] = [one for one in tables["root"]["device"] if one["name"] != device]
    return convert(Document(_SOURCE, Path("/"), "", tables))


def _without_nulls(value: Any) -> Any:
    """As a file has it: what is left out is left out."""
    if isinstance(value, dict):
        return {key: _without_nulls(each) for key, each in value.items() if each is not None}
    return [_without_nulls(each) for each in value] if isinstance(value, list) else value
