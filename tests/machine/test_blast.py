"""A driver misbehaves in a real machine: it strikes, those die that have to, the promises hold. No time is asserted.

Some cells are tried always, all of two architectures with --soak; `partvisor blast` tries every one.
"""

import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any, Final

import psutil
import pytest

from runtime.blast.faults import Fault
from runtime.blast.findings import Trial
from runtime.blast.promises import broken
from runtime.blast.trial import Order, run_trial
from runtime.config.architecture import Architecture
from tests.machine.conftest import PARTVISOR, PATIENCE_S, until

pytestmark = pytest.mark.machine

CONFIG: Final = str(Path(__file__).parent.parent.parent / "configs" / "blast.toml")
COMMAND_S: Final = 180.0  # each of its waits has a bound; on a busy host it may need them
ALWAYS: Final = {
    (Architecture.DISAGGREGATED, Fault.CRASH),
    (Architecture.DISAGGREGATED, Fault.WILD_WRITE),
    (Architecture.MICROKERNELIZED, Fault.DOUBLE_REPLIES),
}
DEADLY: Final = {Fault.CRASH, Fault.HANG, Fault.BUSY_LOOP, Fault.WILD_WRITE}  # for whoever has the driver
LIES: Final = {Fault.GARBAGE_REPLIES, Fault.DOUBLE_REPLIES, Fault.NO_REPLIES}


def cells() -> list[Any]:
    found = []
    for architecture in (Architecture.MICROKERNELIZED, Architecture.DISAGGREGATED):
        for fault in Fault:
            marks = () if (architecture, fault) in ALWAYS else (pytest.mark.soak,)
            found.append(pytest.param(architecture, fault, marks=marks, id=f"{architecture}-{fault}"))
    return found


def tried(architecture: Architecture, fault: Fault, seed: int = 1) -> Trial:
    return run_trial(Order(CONFIG, (), architecture, "disk0", fault, seed, after=100, watch_s=0.4))


@pytest.mark.parametrize(("architecture", "fault"), cells())
def test_who_dies_with_a_driver_is_known(architecture: Architecture, fault: Fault) -> None:
    """The process that it lives in, if the fault is deadly; nobody else. Nothing that was promised is contradicted."""
    found = tried(architecture, fault)
    assert found.struck is not None, found
    assert found.trouble == ""
    assert broken(found) == (), found
    home = "root" if architecture is Architecture.MICROKERNELIZED else "driver"
    if fault in DEADLY:
        assert home in found.dead, found
    if fault is not Fault.WILD_WRITE or home == "driver":
        assert set(found.dead) <= {home}, found
        assert found.bystander.wrong_blocks == 0, found
    if fault in LIES:
        assert found.dead == (), found
    if fault in (Fault.MEMORY_LEAK, Fault.FORK_BOMB) and found.struck.did:  # not ended on the way, as stuck
        assert found.unbounded == (home == "root"), "the sandbox limits drivers, and not the root"


def test_a_driver_in_the_hypervisor_takes_everybody_along() -> None:
    found = tried(Architecture.MONOLITHIC, Fault.CRASH)
    assert "the hypervisor died" in found.machine_down
    assert not found.target.serves
    assert not found.bystander.serves
    assert found.left_behind == ()
    assert broken(found) == (), found


def test_the_command_says_what_it_found(tmp_path: Path) -> None:
    page = tmp_path / "blast.html"
    words = ["--architecture", "microkernel", "--fault", "crash", "--html", str(page), "--json"]
    ended = subprocess.run(
        [*PARTVISOR, "blast", CONFIG, *words], capture_output=True, text=True, timeout=COMMAND_S, check=False
    )
    assert ended.returncode == 0, ended.stderr + ended.stdout
    (cell,) = json.loads(ended.stdout)["cells"]
    assert cell["dead"] == ["driver"]
    assert cell["target_back_ms"] is not None
    assert "microkernel, crash: driver" in ended.stderr
    assert "<h1>partvisor blast</h1>" in page.read_text()


def test_ctrl_c_leaves_nothing(tmp_path: Path) -> None:
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    process = subprocess.Popen(
        [*PARTVISOR, "blast", CONFIG, "--fault", "hang"],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment,
    )
    try:
        deadline = time.monotonic() + PATIENCE_S
        while not list(tmp_path.glob("*/events.jsonl")) and time.monotonic() < deadline:
            time.sleep(0.02)
        everyone = psutil.Process(process.pid).children(recursive=True)
        assert everyone
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=PATIENCE_S)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == 130, errors
    _, alive = psutil.wait_procs(everyone, timeout=PATIENCE_S)
    assert not alive
    until(lambda: list(tmp_path.iterdir()) == [])
