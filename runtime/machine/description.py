"""Telling the root what it is to build, message by message, with the partitions' files as descriptors."""

import os
from typing import Final

from runtime import codec
from runtime.abi import TRACE_FILE
from runtime.config.model import FileMode, MachineConfig, to_tables
from runtime.exits import CommandError
from runtime.machine.firmware import PacketLink
from runtime.machine.trace import MachineTrace

_OPEN_FLAGS: Final = {
    FileMode.READ: os.O_RDONLY,
    FileMode.WRITE: os.O_WRONLY | os.O_CREAT | os.O_TRUNC,
    FileMode.READ_WRITE: os.O_RDWR,
}


class MachineFailed(CommandError):
    """The machine could not start, or went down by itself. The text is one line for the user."""


async def describe_machine(
    config: MachineConfig, firmware: PacketLink, trace: MachineTrace | None = None
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
                try:
                    fds.append(os.open(file.path, _OPEN_FLAGS[file.mode] | os.O_CLOEXEC, 0o644))
                except OSError as error:
                    raise MachineFailed(
                        f"partition {partition.name}: can't open {file.path}: {error.strerror}"
                    ) from error
            if trace is not None and (fd := trace.descriptor(partition.name)) is not None:
                table["file"].append({"name": TRACE_FILE})
                fds.append(os.dup(fd))
            await firmware.send("partition", table, fds)
        finally:
            codec.close_all(fds)
    await firmware.send("create")
