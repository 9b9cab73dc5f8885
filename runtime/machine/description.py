"""Telling the root what it is to build, message by message, with the partitions' files as descriptors."""

import os
from typing import Final

from runtime import codec
from runtime.abi import RESTORED_FILE, TRACE_FILE
from runtime.config.model import FileMode, MachineConfig, PartitionConfig, to_tables
from runtime.exits import CommandError
from runtime.machine.firmware import PacketLink
from runtime.machine.listening_sockets import ListeningSockets
from runtime.machine.saved_partition import SavedPartitionError
from runtime.machine.saving_checks import image_for
from runtime.machine.trace import MachineTrace

_OPEN_FLAGS: Final = {
    FileMode.READ: os.O_RDONLY,
    FileMode.WRITE: os.O_WRONLY | os.O_CREAT | os.O_TRUNC,
    FileMode.READ_WRITE: os.O_RDWR,
}


class MachineFailed(CommandError):
    """The machine could not start, or went down by itself. The text is one line for the user."""


def restored_state(config: MachineConfig, partition: PartitionConfig) -> int:
    """A descriptor of what its program said when it was saved. Raises MachineFailed."""
    assert partition.restore is not None
    try:
        return image_for(config, partition, partition.restore)
    except SavedPartitionError as error:
        raise MachineFailed(f"partition {partition.name} cannot go on from {error}") from error


async def describe_machine(
    config: MachineConfig,
    firmware: PacketLink,
    sockets: ListeningSockets,
    trace: MachineTrace | None = None,
) -> None:
    """Files are opened here, with the user's rights, so that nobody below needs a path. Raises MachineFailed."""
    tables = to_tables(config)
    root = tables["root"]
    traced = {} if trace is None else trace.of_root()
    await firmware.send(
        "machine",
        {
            "machine": tables["machine"],
            "devices": root["device"],
            "cpus": root["cpus"],
            "traced": list(traced),
        },
        list(traced.values()),
    )
    for partition, table in zip(config.partitions, tables["partition"], strict=True):
        fds: list[int] = []
        try:
            for file in partition.files:
                if file.mode is FileMode.LISTEN:
                    fds.append(sockets.descriptor(partition.name, file.name))
                    continue
                assert file.path is not None  # the config's validation sees to it
                try:
                    fds.append(os.open(file.path, _OPEN_FLAGS[file.mode] | os.O_CLOEXEC, 0o644))
                except OSError as error:
                    raise MachineFailed(
                        f"partition {partition.name}: can't open {file.path}: {error.strerror}"
                    ) from error
            if trace is not None and (fd := trace.descriptor(partition.name)) is not None:
                table["file"].append({"name": TRACE_FILE})
                fds.append(os.dup(fd))
            if partition.restore is not None:
                table["file"].append({"name": RESTORED_FILE})
                fds.append(restored_state(config, partition))
            await firmware.send("partition", table, fds)
        finally:
            codec.close_all(fds)
    await firmware.send("create")
