"""Configs of machines with a PC: one partition with an emulated UART, keyboard, clock and disk."""

import importlib.util
from pathlib import Path
from typing import Final

import pytest

from tests.machine.conftest import machine_toml

needs_unicorn = pytest.mark.skipif(
    importlib.util.find_spec("unicorn") is None,
    reason="unicorn is not installed: the extra `emulation` has it",
)
_DISK: Final = (
    '[[root.device]]\nname = "disk0"\nkind = "disk"\nbackend = "file"\npath = "{path}"\nsize = "1MiB"\n'
)
_PC: Final = """
[[partition]]
name = "pc"
program = "{program}"
memory = "16MiB"
intercepts = "{intercepts}"
integration = {integration}
args = {{ {args} }}
{file}
[[partition.emulated]]
kind = "uart"
{uart}
[[partition.emulated]]
kind = "keyboard"
[[partition.emulated]]
kind = "rtc"
[[partition.emulated]]
kind = "ide"
device = "disk0"
"""


def pc_machine(
    tmp_path: Path,
    program: str,
    *others: str,
    args: str = "",
    file: str = "",
    uart: str = "",
    intercepts: str = "hypervisor",
    integration: bool = False,
    **settings: str,
) -> str:
    """`others`: more partitions."""
    pc = _PC.format(
        program=program,
        args=args,
        file=file,
        uart=uart,
        intercepts=intercepts,
        integration=str(integration).lower(),
    )
    return machine_toml(pc, *others, devices=_DISK.format(path=tmp_path / "disk.img"), **settings)
