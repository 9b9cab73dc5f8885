"""The machines of `partvisor bench devices`: one a device class, with guests that measure themselves."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from runtime.config.loading import load
from runtime.config.model import MachineConfig, WaitingKind

DISK_BYTES: Final = 64 << 20
NET_BUFFER_BYTES: Final = 16 << 20
_HEAD: Final = """
[machine]
name = "bench-devices-{pid}-{name}"
memory = "{memory}MiB"
waiting = "{waiting}"
[root]
cpus = [{root_cpu}]
"""
_DEVICE: Final = '[[root.device]]\nname = "{device}"\nkind = "{kind}"\n{keys}\n'
_GUEST: Final = """
[[partition]]
name = "{name}"
program = "partitions.guests.{program}"
memory = "64MiB"
cpus = [{cpu}]
args = {{ {args} }}
{own}
"""
_OF_GUEST: Final = '[[partition.device]]\nname = "{device}"\n{keys}\n'


@dataclass(frozen=True, slots=True)
class Guest:
    """One guest on the machine's one device."""

    name: str
    program: str
    args: str = ""  # TOML, behind the device
    keys: str = ""  # of its device
    own: str = ""  # of its own table, in TOML
    is_second: bool = False  # it runs where the root does


@dataclass(frozen=True, slots=True)
class DeviceMachine:
    """A device class, as a machine that has one of it."""

    device: str | None  # its name; None: there is none that the config names
    kind: str
    keys: str  # of the device, in TOML
    guests: Sequence[Guest]
    memory_mib: int = 256

    def text(self, waiting: WaitingKind, cpus: tuple[int, int], values: dict[str, Any]) -> str:
        """A config. `cpus`: of the guest that asks, and of all others; `values` fill in the braces of keys and args."""
        first, second = cpus
        head = {"pid": os.getpid(), "name": self.kind, "memory": self.memory_mib}
        text = _HEAD.format(**head, waiting=waiting, root_cpu=second)
        if self.device is not None:
            text += _DEVICE.format(device=self.device, kind=self.kind, keys=_filled(self.keys, values))
        for guest in self.guests:
            args = [_filled(guest.args, values)] if guest.args else []
            own = guest.own
            if self.device is not None:
                args.insert(0, f'device = "{self.device}"')
                own += "\n" + _OF_GUEST.format(device=self.device, keys=guest.keys)
            text += _GUEST.format(
                name=guest.name,
                program=guest.program,
                cpu=second if guest.is_second else first,
                args=", ".join(args),
                own=own,
            )
        return text

    def config(
        self, folder: Path, waiting: WaitingKind, cpus: tuple[int, int], values: dict[str, Any]
    ) -> MachineConfig:
        """Written into `folder`, and read."""
        path = folder / f"{self.kind}.toml"
        path.write_text(self.text(waiting, cpus, values | {"folder": folder}))
        return load(path)


def _filled(text: str, values: dict[str, Any]) -> str:
    for name, value in values.items():
        text = text.replace(f"<{name}>", str(value))
    return text


_NET_BUFFERS: Final = f"receive_bytes = {NET_BUFFER_BYTES}, send_bytes = {NET_BUFFER_BYTES // 4}"

_STREAMS: Final = "streams = true"

MACHINES: Final = {
    machine.kind: machine
    for machine in (
        DeviceMachine(
            "disk0",
            "disk",
            f'backend = "file"\npath = "<folder>/disk.img"\nsize = {DISK_BYTES}',
            (Guest("asker", "block_load:main", "loads = <loads>", 'ring_bytes = "512KiB"'),),
        ),
        DeviceMachine(
            "net0",
            "net",
            'backend = "switch"\nmtu = 65521',
            (
                Guest("answerer", "frame_pair:answer", _NET_BUFFERS, is_second=True),
                Guest("asker", "frame_pair:ask", f"loads = <loads>, seconds = <seconds>, {_NET_BUFFERS}"),
            ),
            memory_mib=512,
        ),
        DeviceMachine(
            "serial0",
            "serial",
            'driver = "partitions.serial.loopback:LoopbackSerial"',
            (Guest("asker", "line_load:main", "loads = <loads>, seconds = <seconds>"),),
        ),
        DeviceMachine(
            "echo0",
            "echo",
            "",
            (Guest("asker", "exchange_load:main", "bytes = 64, seconds = <seconds>, echo = true"),),
        ),
        DeviceMachine(
            None,
            "streams",
            "",
            (
                Guest("answerer", "stream_pair:answer", own=_STREAMS, is_second=True),
                Guest(
                    "asker",
                    "stream_pair:ask",
                    'target = "answerer", loads = <loads>, seconds = <seconds>',
                    own=_STREAMS,
                ),
            ),
        ),
    )
}
