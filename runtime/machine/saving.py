"""`partvisor save`: a partition comes to rest, all that there is of it goes into a file, and it ends, or goes on.

Its memory and what the hypervisor keeps of it are read while it stands still; its emulated devices' state is the
root's. What its program knows, it says itself (`partition.on_save`), between two writes: a process can't be copied.
Its disks are named, not copied.
"""

import contextlib
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
import trio

from runtime import codec
from runtime.abi import PAGE_BYTES, RESTORED_FILE
from runtime.config.model import FileMode, MachineConfig, PartitionConfig, to_tables
from runtime.machine import saved_file
from runtime.machine.platform import Platform
from runtime.machine.questions import RequestRefused
from runtime.machine.saved_partition import (
    Description,
    HypervisorState,
    SavedDevice,
    SavedPartitionError,
    SavedProcessor,
    SavedSlot,
)
from runtime.machine.saving_checks import disks_of, image_for, saveable

RESTING_S_MAX: Final = 9.0  # for a guest to come to rest, or to be refused: the root gives up earlier
GOING_ON_S_MAX: Final = 5.0  # for it to be let go on, after a save that failed
STATE_S_MAX: Final = 15.0  # for the root to wait for its disks, and to tell its state
CREATING_S_MAX: Final = 10.0  # for the root to begin a partition
ENDING_S_MAX: Final = 5.0  # for its process to be gone; killed it is
_LOOK_S: Final = 0.005
PROGRESS_S: Final = 1.0  # between two events that say how far it has come, and until the first


async def save(platform: Platform, name: str, order: Mapping[str, Any]) -> Mapping[str, Any]:
    """`order`: {path, go_on}. RequestRefused: there is no file, and the partition runs as before."""
    path, go_on = Path(str(order["path"])), bool(order["go_on"])
    config = platform.config
    partition = saveable(config, name)
    if not path.parent.is_dir():  # before anybody comes to rest for it
        raise RequestRefused(f"{path}: No such file or directory")
    if path.exists() and not path.is_file():
        raise RequestRefused(f"{path}: it is no file; name one")
    freeze: dict[str, object] = {"name": name, "service": "vss"}
    memory: list[int] = []
    # It has to run to come to rest, and the pause is the operator's: it is given back to one that goes on.
    was_paused = bool((await platform.ask_hypervisor("resume", name=name))["names"])
    is_frozen = False
    state = os.memfd_create("state", os.MFD_CLOEXEC)
    try:
        try:
            await _asked(platform, RESTING_S_MAX, "integration", **freeze, order={"operation": "freeze"})
            is_frozen = True
            await platform.ask_hypervisor("pause", name=name)
            order_of_state = {"operation": "state", "name": name, "device": "", "again": False}
            answer = await _asked(platform, STATE_S_MAX, "device", [state], **order_of_state)
            data = os.pread(state, int(answer["state_bytes"]), 0)
            devices = [SavedDevice(str(kind), bytes(one)) for kind, one in answer["devices"]]
            hypervisor = await _hypervisor_state(platform, name, memory)
            described = _describe(config, partition, hypervisor, devices)
            size = await _write(platform, name, path, described, data, memory)
        except BaseException:
            # Bounded: a root that has died over it does not answer, and may be what ends the machine.
            with (
                trio.move_on_after(GOING_ON_S_MAX, shield=True),
                contextlib.suppress(RequestRefused, OSError),
            ):
                await _go_on(platform, freeze if is_frozen else None, name, was_paused)
            raise
    except OSError as error:
        raise RequestRefused(f"{path}: {error.strerror or error}") from error
    except SavedPartitionError as error:
        raise RequestRefused(f"{path}: {error}") from error
    finally:
        os.close(state)
        codec.close_all(memory)
    with trio.CancelScope(shield=True):  # the file is there: it is too late to give it up
        with trio.move_on_after(ENDING_S_MAX):
            if go_on:
                await _go_on(platform, freeze, name, was_paused)
            else:
                await _end(platform, name)
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


async def _asked(
    platform: Platform, seconds_max: float, verb: str, fds: Sequence[int] = (), /, **values: object
) -> Mapping[str, Any]:
    """As `ask_root`, but not for ever: that root may have died over it. Who gives the whole up meanwhile waits."""
    with trio.move_on_after(seconds_max, shield=True):
        return await platform.ask_root(verb, fds, **values)
    raise RequestRefused(f"the root does not answer within {seconds_max:g} s")


async def _end(platform: Platform, name: str) -> None:
    platform._roster.saved(name)
    with contextlib.suppress(RequestRefused):  # it has ended by itself
        await platform.ask_hypervisor("kill", name=name)
    while name not in platform._roster.exits:  # so that who is answered can restore it
        await trio.sleep(_LOOK_S)


async def _go_on(
    platform: Platform, freeze: Mapping[str, object] | None, name: str, was_paused: bool
) -> None:
    await platform.ask_hypervisor("resume", name=name)
    if freeze is not None:
        with contextlib.suppress(RequestRefused):  # it was at rest for so long that it has gone on by itself
            await platform.ask_root("integration", **freeze, order={"operation": "thaw"})
    if was_paused:
        await platform.ask_hypervisor("pause", name=name)


async def _hypervisor_state(platform: Platform, name: str, memory: list[int]) -> HypervisorState:
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
    platform: Platform, name: str, path: Path, described: Description, state: bytes, memory: list[int]
) -> int:
    """In a thread, which ends, and leaves nothing, when this is cancelled before the file has its name."""
    token = trio.lowlevel.current_trio_token()
    told = time.monotonic()

    def tell(done: int, total: int) -> None:
        nonlocal told
        if time.monotonic() - told >= PROGRESS_S:
            told = time.monotonic()
            with contextlib.suppress(trio.RunFinishedError):
                token.run_sync_soon(
                    lambda: platform.log.append("partition.saving", name, bytes=done, of=total)
                )

    # Not abandoned: the thread uses descriptors that are closed behind it.
    return await trio.to_thread.run_sync(
        saved_file.write, path, described, state, memory, tell, trio.from_thread.check_cancelled
    )


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


async def restore(platform: Platform, name: str, order: Mapping[str, Any]) -> Mapping[str, Any]:
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
        look = trio.from_thread.check_cancelled
        fds.append(await trio.to_thread.run_sync(image_for, config, partition, path, look))
        await _create(platform, name, table, fds)
    except SavedPartitionError as error:
        raise RequestRefused(f"{name} cannot go on from {error}") from error
    finally:
        codec.close_all(fds)
    platform.log.append("partition.restored", name, path=str(path))
    return {"path": str(path)}


async def _create(platform: Platform, name: str, table: Mapping[str, Any], fds: list[int]) -> None:
    """Whole, once it has begun. RequestRefused."""
    await trio.lowlevel.checkpoint()  # the last moment to give it up
    order = {"operation": "create", "name": name, "table": table, "device": "", "again": False}
    await _asked(platform, CREATING_S_MAX, "device", fds, **order)
