"""`partvisor save`: a partition comes to rest, all that there is of it goes into a file, and it ends, or goes on.

Its memory and what the hypervisor keeps of it are read while it stands still; its emulated devices' state is the
root's. What its program knows, it says itself (`partition.on_save`), between two writes: a process can't be copied.
Its disks are named, not copied.
"""

import contextlib
import os
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec
import trio

from runtime import codec
from runtime.abi import PAGE_BYTES, RESTORED_FILE
from runtime.config.devices import BackendKind, DeviceKind
from runtime.config.model import FileMode, MachineConfig, PartitionConfig, to_tables
from runtime.machine import saved_file
from runtime.machine.questions import RequestRefused
from runtime.machine.saved_partition import (
    Description,
    HypervisorState,
    SavedDevice,
    SavedPartitionError,
    SavedProcessor,
    SavedSlot,
)
from runtime.reserved_names import ROOT

if TYPE_CHECKING:
    from runtime.machine.platform import Platform

ENDING_S_MAX: Final = 5.0  # for its process to be gone; killed it is
_LOOK_S: Final = 0.005
PROGRESS_S: Final = 1.0  # between two events that say how far it has come, and until the first


async def save(platform: "Platform", name: str, order: Mapping[str, Any]) -> Mapping[str, Any]:
    """`order`: {path, go_on}. RequestRefused: there is no file, and the partition runs as before."""
    path, go_on = Path(str(order["path"])), bool(order["go_on"])
    config = platform.config
    partition = saveable(config, name)
    if not path.parent.is_dir():  # before anybody comes to rest for it
        raise RequestRefused(f"{path}: No such file or directory")
    freeze: dict[str, object] = {"name": name, "service": "vss"}
    memory: list[int] = []
    # It has to run to come to rest, and the pause is the operator's: it is given back to one that goes on.
    was_paused = bool((await platform.ask_hypervisor("resume", name=name))["names"])
    state = os.memfd_create("state", os.MFD_CLOEXEC)
    try:
        await platform.ask_root("integration", **freeze, order={"operation": "freeze"})
        try:
            await platform.ask_hypervisor("pause", name=name)
            answer = await platform.ask_root(
                "device", [state], operation="state", name=name, device="", again=False
            )
            data = os.pread(state, int(answer["state_bytes"]), 0)
            devices = [SavedDevice(str(kind), bytes(one)) for kind, one in answer["devices"]]
            hypervisor = await _hypervisor_state(platform, name, memory)
            described = _describe(config, partition, hypervisor, devices)
            size = await _write(platform, name, path, described, data, memory)
        except BaseException:
            with trio.CancelScope(shield=True), contextlib.suppress(RequestRefused, OSError):
                await _go_on(platform, freeze, was_paused)
            raise
    except OSError as error:
        raise RequestRefused(f"{path}: {error.strerror or error}") from error
    except SavedPartitionError as error:
        raise RequestRefused(f"{path}: {error}") from error
    finally:
        os.close(state)
        codec.close_all(memory)
    if go_on:
        await _go_on(platform, freeze, was_paused)
    else:
        platform._roster.saved(name)
        await platform.ask_hypervisor("kill", name=name)
        with trio.move_on_after(ENDING_S_MAX):  # so that who is answered can restore it
            while name not in platform._roster.exits:
                await trio.sleep(_LOOK_S)
    memory_bytes = sum(one.pages for one in hypervisor.slots if one.own) * PAGE_BYTES
    platform.log.append("partition.saved", name, path=str(path), bytes=size, goes_on=go_on)
    return {
        "path": str(path),
        "bytes": size,
        "state_bytes": len(data),
        "memory_bytes": memory_bytes,
        "devices": [one.kind for one in devices],
        "goes_on": go_on,
    }


async def _go_on(platform: "Platform", freeze: Mapping[str, object], was_paused: bool) -> None:
    await platform.ask_hypervisor("resume", name=freeze["name"])
    with contextlib.suppress(RequestRefused):  # it was at rest for so long that it has gone on by itself
        await platform.ask_root("integration", **freeze, order={"operation": "thaw"})
    if was_paused:
        await platform.ask_hypervisor("pause", name=freeze["name"])


async def _hypervisor_state(platform: "Platform", name: str, memory: list[int]) -> HypervisorState:
    """`memory`: gets a descriptor of each own slot. RequestRefused."""
    answer = await platform.ask_hypervisor("state", name=name)
    processors = [dict(await platform.ask_hypervisor("state", name=name, vp=vp)) for vp in answer["vps"]]
    slots: list[list[Any]] = []
    while True:
        part = await platform.ask_for_slots(name=name, after=slots[-1][0] + 1 if slots else 0)
        memory += part.fds
        slots += part.values["slots"]
        if not part.values["more"]:
            break
    for one in processors:
        del one["request"]
        one["registers"] = {int(number): value for number, value in one["registers"].items()}
    try:
        return HypervisorState(
            **{key: answer[key] for key in HypervisorState.__struct_fields__ if key in answer},
            processors=[msgspec.convert(one, SavedProcessor) for one in processors],
            slots=[SavedSlot(*one) for one in slots],
        )
    except (TypeError, msgspec.ValidationError) as error:
        raise SavedPartitionError(f"what the hypervisor says of it cannot be kept: {error}") from error


async def _write(
    platform: "Platform", name: str, path: Path, described: Description, state: bytes, memory: list[int]
) -> int:
    """In a thread, which ends, and leaves nothing, when this is cancelled."""
    token, given_up = trio.lowlevel.current_trio_token(), threading.Event()
    told = time.monotonic()

    def tell(done: int, total: int) -> None:
        nonlocal told
        if time.monotonic() - told >= PROGRESS_S:
            told = time.monotonic()
            with contextlib.suppress(trio.RunFinishedError):
                token.run_sync_soon(
                    lambda: platform.log.append("partition.saving", name, bytes=done, of=total)
                )

    def write() -> int | Exception:
        try:
            return saved_file.write(path, described, state, memory, tell, lambda: not given_up.is_set())
        except (OSError, SavedPartitionError) as error:
            return error

    # Not abandoned: the thread uses descriptors that are closed behind it.
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_tell_of_cancellation, given_up)
        with trio.CancelScope(shield=True):
            written = await trio.to_thread.run_sync(write)
        nursery.cancel_scope.cancel()
    if isinstance(written, Exception):
        raise written
    return written


async def _tell_of_cancellation(given_up: threading.Event) -> None:
    try:
        await trio.sleep_forever()
    finally:
        given_up.set()


def saveable(config: MachineConfig, name: str) -> PartitionConfig:
    """RequestRefused: it can't be saved, and why."""
    found = [one for one in config.partitions if one.name == name and one.parent == ROOT]
    if not found:
        raise RequestRefused(f"no partition {name[:80]!r} of the root's own is configured")
    (partition,) = found
    if not partition.integration:
        raise RequestRefused(f"{name} can't be asked to come to rest: give it integration = true")
    if any(one.parent == name for one in config.partitions):
        raise RequestRefused(f"{name} has partitions of its own: save those, and end them first")
    for device in disks_of(config, partition):
        if config.device(device).backend is not BackendKind.FILE:
            raise RequestRefused(f"{name} has the disk {device}, whose blocks go with the machine")
    return partition


def disks_of(config: MachineConfig, partition: PartitionConfig) -> list[str]:
    """Offered to it, or emulated for it, each once."""
    names = [one.name for one in partition.devices]
    names += [one.device for one in partition.emulated if one.device is not None]
    return [name for name in dict.fromkeys(names) if config.device(name).kind is DeviceKind.DISK]


def _describe(
    config: MachineConfig,
    partition: PartitionConfig,
    hypervisor: HypervisorState,
    devices: list[SavedDevice],
) -> Description:
    """Raises OSError: a disk's file is gone."""
    disks = [
        saved_file.identity_of(name, str(config.device(name).path)) for name in disks_of(config, partition)
    ]
    return Description(
        config.machine.name,
        partition.name,
        partition.program,
        time.time_ns(),
        disks,
        devices,
        hypervisor,
        0,
        0,
    )


def image_for(config: MachineConfig, partition: PartitionConfig, path: Path) -> int:
    """A descriptor of what this partition can go on from, checked: the caller's to close.

    SavedPartitionError: the file is none, is another partition's, or its disks have changed since.
    """
    said, descriptor = saved_file.image(path)
    try:
        _check(config, partition, path, said)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _check(config: MachineConfig, partition: PartitionConfig, path: Path, said: Description) -> None:
    if (said.partition, said.program) != (partition.name, partition.program):
        raise SavedPartitionError(
            f"{path}: of {said.partition}, which runs {said.program}; {partition.name} runs {partition.program}"
        )
    if set(disks_of(config, partition)) != {disk.device for disk in said.disks}:
        raise SavedPartitionError(f"{path}: its disks are {', '.join(sorted(d.device for d in said.disks))}")
    if [one.kind for one in partition.emulated] != [one.kind for one in said.devices]:
        had = ", ".join(one.kind for one in said.devices) or "none"
        raise SavedPartitionError(f"{path}: its emulated devices are {had}")
    if partition.vps != len(said.hypervisor.processors):
        raise SavedPartitionError(
            f"{path}: of {len(said.hypervisor.processors)} processors, not {partition.vps}"
        )
    if partition.memory // PAGE_BYTES < said.hypervisor.used_pages:
        need = said.hypervisor.used_pages * PAGE_BYTES >> 10
        raise SavedPartitionError(f"{path}: of {need} KiB of memory in use; memory = says less")
    if changed := saved_file.changed_disks(said.disks):
        raise SavedPartitionError(f"{path}: {', '.join(changed)} has changed since it was saved")


async def restore(platform: "Platform", name: str, order: Mapping[str, Any]) -> Mapping[str, Any]:
    """A partition that has ended goes on from the file {path}. RequestRefused: nothing has changed."""
    config, path = platform.config, Path(str(order["path"]))
    partition = saveable(config, name)
    exits = platform._roster.exits
    if name not in exits:
        raise RequestRefused(f"{name} runs: end it first, by partvisor kill {name}, or save it")
    paths = [file.path for file in partition.files if file.mode is FileMode.READ and file.path is not None]
    if len(paths) < len(partition.files):
        raise RequestRefused(
            f"{name} has more than files to read: start a machine with partition.{name}.restore set instead"
        )
    table = next(one for one in to_tables(config)["partition"] if one["name"] == name)
    table["file"] = [*table["file"], {"name": RESTORED_FILE}]
    fds: list[int] = []
    try:
        fds += [os.open(each, os.O_RDONLY | os.O_CLOEXEC) for each in paths]
        fds.append(await trio.to_thread.run_sync(image_for, config, partition, path))
        await platform.ask_root(
            "device", fds, operation="create", name=name, table=table, device="", again=False
        )
    except SavedPartitionError as error:
        raise RequestRefused(f"{name} cannot go on from {error}") from error
    finally:
        codec.close_all(fds)
    platform.log.append("partition.restored", name, path=str(path))
    return {"path": str(path)}
