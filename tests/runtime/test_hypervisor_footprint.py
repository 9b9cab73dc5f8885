"""What the broker's process loads: little, and nothing that knows of devices."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

REPOSITORY: Final = Path(__file__).parents[2]
CODE_BYTES_MAX: Final = 600_000  # Hyper-V's own hypervisor is about that size

OURS: Final = {
    "bus",
    "bus.memory",
    "bus.native",
    "bus.native._core",
    "runtime",
    "runtime.abi",
    "runtime.call_arguments",
    "runtime.codec",
    "runtime.lifeline",
    "runtime.hypervisor",
    "runtime.hypervisor.arguments",
    "runtime.hypervisor.broker",
    "runtime.hypervisor.dispatch",
    "runtime.hypervisor.effects",
    "runtime.hypervisor.gpa",
    "runtime.hypervisor.heartbeat",
    "runtime.hypervisor.host",
    "runtime.hypervisor.inventory",
    "runtime.hypervisor.loop",
    "runtime.hypervisor.machine",
    "runtime.hypervisor.outbox",
    "runtime.hypervisor.partitions",
    "runtime.hypervisor.pools",
    "runtime.hypervisor.ports",
    "runtime.hypervisor.power",
    "runtime.hypervisor.processes",
    "runtime.hypervisor.programs",
    "runtime.hypervisor.properties",
    "runtime.hypervisor.replies",
    "runtime.hypervisor.standby",
    "runtime.hypervisor.synic",
    "runtime.hypervisor.vps",
    "runtime.hypervisor.zygote",
}
THIRD_PARTY: Final = {"msgpack"}

# A power socket whose other end is closed: the broker boots, finds nobody there, and ends in good order.
_SCRIPT: Final = """
import json, socket, sys
from runtime.hypervisor.__main__ import main
ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
theirs.close()
main(["--power-fd", str(ours.detach()), "--zygote-module", "tests.runtime.standin_zygote"])
print(json.dumps({name: getattr(module, "__file__", None) for name, module in sys.modules.items()}))
"""


@pytest.fixture(scope="module")
def loaded() -> dict[str, str | None]:
    command = [sys.executable, "-c", _SCRIPT]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, check=True)
    modules: dict[str, str | None] = json.loads(done.stdout)
    return modules


def test_the_broker_loads_these_modules_of_ours_and_no_others(loaded: dict[str, str | None]) -> None:
    ours = {name for name in loaded if name.partition(".")[0] in ("bus", "runtime", "partitions", "tests")}
    assert ours == OURS | {"runtime.hypervisor.__main__"}


def test_the_broker_loads_one_package_of_other_people(loaded: dict[str, str | None]) -> None:
    foreign = {
        name.partition(".")[0]
        for name, file in loaded.items()
        if file is not None and "site-packages" in file and not name.startswith("_")
    }
    assert foreign == THIRD_PARTY


def test_the_brokers_code_is_smaller_than_a_hypervisor(loaded: dict[str, str | None]) -> None:
    files = {file for name, file in loaded.items() if name in OURS and file is not None}
    size_bytes = sum(Path(file).stat().st_size for file in files)
    assert 0 < size_bytes < CODE_BYTES_MAX
