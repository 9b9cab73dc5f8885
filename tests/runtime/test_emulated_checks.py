"""Configurations with emulated devices that cannot be: each mistake is named, with its path."""

from pathlib import Path
from typing import Any

import pytest

from runtime.config.document import ConfigError
from runtime.config.loading import load
from tests.runtime.toml_writing import write_toml

UART: dict[str, Any] = {"kind": "uart"}
IDE: dict[str, Any] = {"kind": "ide", "device": "disk0"}


def _problems(tmp_path: Path, emulated: list[dict[str, Any]], **partition: Any) -> list[str]:
    """Paths of all mistakes."""
    child = {"name": "pc", "program": "partitions.guests.legacy:main", "memory": "8MiB", "emulated": emulated}
    disk = {"kind": "disk", "backend": "memory", "size": "1MiB"}
    tables = {
        "machine": {"name": "m", "memory": "64MiB"},
        "root": {"device": [disk | {"name": "disk0"}, disk | {"name": "large", "block_bytes": 4096}]},
        "partition": [
            {"name": "top", "program": "partitions.guests.idle:main", "memory": "24MiB"},
            child | partition,
        ],
    }
    path = tmp_path / "machine.toml"
    path.write_text(write_toml(tables))
    try:
        load(path)
    except ConfigError as error:
        return [".".join(map(str, problem.path)) for problem in error.problems]
    return []


@pytest.mark.parametrize(
    ("emulated", "places"),
    [
        ([UART, {"kind": "keyboard"}, {"kind": "rtc"}, IDE], []),
        ([UART, UART | {"port": 0x2F8, "irq": 3, "mmio": 0xFE000000, "input": "x"}], []),
        ([IDE, IDE | {"port": 0x170, "irq": 15}], []),
        ([UART, UART], ["1.port"]),
        ([UART, UART | {"port": 0x3F1}], ["1.port"]),
        ([{"kind": "rtc", "port": 0x63}, {"kind": "keyboard"}], ["1.port"]),
        ([{"kind": "ide"}], ["0.device"]),
        ([IDE | {"device": "none"}], ["0.device"]),
        ([IDE | {"device": "large"}], ["0.device"]),
        ([UART | {"device": "disk0"}], ["0.device"]),
        ([IDE | {"mmio": 4096, "input": "x"}], ["0.mmio", "0.input"]),
        ([UART | {"mmio": 4097}], ["0.mmio"]),
        ([UART | {"mmio": 8192}, UART | {"port": 0x2F8, "mmio": 8192}], ["1.mmio"]),
        ([UART | {"irq": 16}], ["0.irq"]),
        ([UART | {"port": 0}], ["0.port"]),
        ([UART | {"input": "x" * 129}], ["0.input"]),
        ([{"kind": "floppy"}], ["0.kind"]),
    ],
)
def test_each_mistake_is_named(tmp_path: Path, emulated: list[dict[str, Any]], places: list[str]) -> None:
    found = _problems(tmp_path, emulated)
    assert sorted(found) == sorted(f"partition.1.emulated.{place}" for place in places)


def test_only_the_roots_own_children_have_them(tmp_path: Path) -> None:
    assert _problems(tmp_path, [UART], parent="top") == ["partition.1.emulated"]
    assert _problems(tmp_path, [UART], intercepts="direct") == []
    assert _problems(tmp_path, [UART], intercepts="magic") == ["partition.1.intercepts"]
