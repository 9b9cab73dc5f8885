"""A child's bytes reach the root's file through a real machine, over every route and kind of waiting."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from tests.machine.conftest import PATIENCE_S, Boot, machine_toml

pytestmark = pytest.mark.machine


def copy_machine(
    tmp_path: Path, program: str, route: str, waiting: str, vps: int, architecture: str = "microkernelized"
) -> str:
    return machine_toml(
        f'[[partition]]\nname = "guest"\nprogram = "partitions.guests.copy:{program}"\nmemory = "32MiB"\nvps = {vps}\n'
        'args = { device = "disk0", bytes = 3000001 }\n[[partition.device]]\nname = "disk0"\n'
        + (
            f'[[partition.file]]\nname = "source"\npath = "{tmp_path / "source"}"\n'
            if program == "write_file"
            else ""
        ),
        devices=f'[[root.device]]\nname = "disk0"\nkind = "disk"\nbackend = "file"\npath = "{tmp_path / "disk"}"\n'
        'size = "16MiB"\n',
        signal_route=route,
        waiting=waiting,
        architecture=architecture,
    )


_WAYS: Final = [
    ("direct", "adaptive"),
    ("broker", "adaptive"),
    ("direct", "block"),
    ("broker", "block"),
    ("direct", "spin"),
]
_TWO_VPS: Final = ("broker", "adaptive")  # the way that every time takes a machine with two, too


@pytest.mark.parametrize(
    ("route", "waiting", "vps"),
    [
        pytest.param(*way, vps, marks=[pytest.mark.soak] * (vps == 2 and way != _TWO_VPS))
        for way in _WAYS
        for vps in (1, 2)
    ],
)
def test_bytes_written_by_one_child_are_read_by_another_at_the_next_boot(
    boot: Boot, tmp_path: Path, route: str, waiting: str, vps: int
) -> None:
    _write_and_read_back(boot, tmp_path, route, waiting, vps)


@pytest.mark.parametrize(
    "architecture",
    [pytest.param("disaggregated", marks=pytest.mark.soak), "monolithic", "hosted", "microkernel"],
)
def test_the_same_guest_copies_whoever_serves_its_disk(boot: Boot, tmp_path: Path, architecture: str) -> None:
    _write_and_read_back(boot, tmp_path, "direct", "adaptive", 1, architecture)


def _write_and_read_back(
    boot: Boot, tmp_path: Path, route: str, waiting: str, vps: int, architecture: str = "microkernelized"
) -> None:
    source = os.urandom(3_000_001)  # not whole blocks
    (tmp_path / "source").write_bytes(source)
    expected = hashlib.sha256(source).hexdigest()
    for program in ("write_file", "read_back"):
        machine = boot(copy_machine(tmp_path, program, route, waiting, vps, architecture))
        copied = machine.wait_for("guest.copied", "guest")
        assert machine.wait() == 0, machine.errors
        assert copied["fields"]["sha256"] == expected
        assert (tmp_path / "disk").read_bytes()[: len(source)] == source
        assert machine.wait_for("partition.exited", "guest")["fields"]["code"] == 0


def test_the_demo_compares_its_four_sums(tmp_path: Path, runtime_dir: Path) -> None:
    (tmp_path / "source").write_bytes(os.urandom(1_234_567))
    demo = subprocess.run(
        [sys.executable, "-m", "runtime.demo", str(tmp_path / "source"), "--json"],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
        env=os.environ | {"PARTVISOR_RUNTIME_DIR": str(runtime_dir), "TMPDIR": str(tmp_path)},
    )
    assert demo.returncode == 0, demo.stderr
    result = json.loads(demo.stdout)
    assert result["sums_agree"] is True
    assert len(set(result["sha256"].values())) == 1
    assert result["write"]["requests"] > 0
    assert [path.name for path in tmp_path.iterdir()] == ["source"]  # no image, no folder, no socket
