"""What the broker's process loads: little, and nothing that knows of devices."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from runtime.abi import HypercallError
from tests.runtime.broker_process import BrokerProcess, broker_process

REPOSITORY: Final = Path(__file__).parents[2]
CODE_BYTES_MAX: Final = 600_000  # Hyper-V's own hypervisor is about that size

OURS: Final = {
    "bus",
    "bus.intercept_messages",
    "bus.memory",
    "bus.synic",
    "bus.yielded_time",
    "bus.native",
    "bus.native._core",
    "runtime",
    "runtime.abi",
    "runtime.privileges",
    "runtime.hypercalls",
    "runtime.hypercalls.arguments",
    "runtime.machine",
    "runtime.codec",
    "runtime.machine.lifeline",
    "runtime.hypervisor",
    "runtime.hypervisor.arguments",
    "runtime.hypervisor.broker",
    "runtime.hypervisor.call_rules",
    "runtime.hypervisor.dispatch",
    "runtime.hypervisor.effects",
    "runtime.hypervisor.endpoints",
    "runtime.hypervisor.gpa",
    "runtime.hypervisor.heartbeat",
    "runtime.hypervisor.host",
    "runtime.hypervisor.intercepts",
    "runtime.hypervisor.intercept_state",
    "runtime.hypervisor.intercept_delivery",
    "runtime.hypervisor.lent_vps",
    "runtime.hypervisor.sockets",
    "runtime.hypervisor.partition_inventory",
    "runtime.hypervisor.loop",
    "runtime.hypervisor.machine",
    "runtime.hypervisor.object_inventory",
    "runtime.hypervisor.outbox",
    "runtime.hypervisor.partitions",
    "runtime.hypervisor.pools",
    "runtime.hypervisor.ports",
    "runtime.hypervisor.power",
    "runtime.hypervisor.processes",
    "runtime.hypervisor.programs",
    "runtime.hypervisor.pausing",
    "runtime.hypervisor.properties",
    "runtime.hypervisor.replies",
    "runtime.hypervisor.debug_port",
    "runtime.hypervisor.orderly_end",
    "runtime.hypervisor.reboot",
    "runtime.hypervisor.port_inventory",
    "runtime.hypervisor.recorded",
    "runtime.hypervisor.recorder",
    "runtime.hypervisor.self_portrait",
    "runtime.hypervisor.service_time",
    "runtime.hypervisor.standby",
    "runtime.hypervisor.synic",
    "runtime.hypervisor.vps",
    "runtime.hypervisor.cpu_time",
    "runtime.hypervisor.scheduler",
    "runtime.hypervisor.scheduling",
    "runtime.hypervisor.scheduling_account",
    "runtime.hypervisor.scheduling_cgroups",
    "runtime.hypervisor.scheduling_mechanisms",
    "runtime.hypervisor.scheduling_placement",
    "runtime.hypervisor.scheduling_shares",
    "runtime.hypervisor.interrupt_counts",
    "runtime.hypervisor.clockwork",
    "runtime.hypervisor.crashes",
    "runtime.hypervisor.interrupts",
    "runtime.hypervisor.reference_clock",
    "runtime.hypervisor.registers",
    "runtime.hypervisor.synthetic_timers",
    "runtime.hypervisor.timer_expiry",
    "runtime.hypervisor.control_properties",
    "runtime.hypervisor.device_domains",
    "runtime.hypervisor.direct_delivery",
    "runtime.hypervisor.gpa_space",
    "runtime.hypervisor.guest_memory",
    "runtime.hypervisor.host_processors",
    "runtime.hypervisor.processors",
    "runtime.hypervisor.reference_time",
    "runtime.hypervisor.statistics",
    "runtime.hypervisor.device_domain",
    "runtime.hypervisor.drift",
    "runtime.hypervisor.fault_seams",
    "runtime.hypervisor.message",
    "runtime.hypervisor.partition",
    "runtime.hypervisor.pool",
    "runtime.hypervisor.port",
    "runtime.hypervisor.program",
    "runtime.hypervisor.statistics_page",
    "runtime.hypervisor.virtual_processor",
    "runtime.loaded_code",
    "runtime.statistics",
    "runtime.hypervisor.kept_zygote",
    "runtime.hypervisor.zygote",
    "runtime.machine.user_namespace",
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


@pytest.fixture(scope="module")
def running() -> Iterator[BrokerProcess]:
    """A real one, which has served calls and started a guest."""
    with broker_process() as broker:
        broker.event("partition.started", id=broker.spawn("linger"))
        yield broker


def test_the_brokers_code_is_smaller_than_a_hypervisor(running: BrokerProcess) -> None:
    """Source text of our modules, and executable pages of our shared object: what runs, without debug information."""
    portrait = running.request("hypervisor", {})
    assert portrait["source_bytes"] == sum(path.stat().st_size for path in sources(portrait))
    assert 0 < portrait["native_text_bytes"] < 200_000
    assert portrait["code_bytes"] == portrait["source_bytes"] + portrait["native_text_bytes"]
    assert portrait["code_bytes"] < CODE_BYTES_MAX


def sources(portrait: dict[str, Any]) -> list[Path]:
    files = []
    for name in OURS | {"runtime.hypervisor.__main__"}:
        path = REPOSITORY / name.replace(".", "/")
        files += [file for file in (path.with_suffix(".py"), path / "__init__.py") if file.exists()]
    assert len(files) == portrait["modules"] - 1  # the native core is no source
    return files


def test_a_running_broker_has_nothing_of_devices_or_of_the_platform_mapped(running: BrokerProcess) -> None:
    maps = Path(f"/proc/{running.process.pid}/maps").read_text()
    shared = {Path(line.split()[-1]).name for line in maps.splitlines() if ".so" in line}
    assert "_core.abi3.so" in shared
    assert not [
        name for name in shared if name.startswith(("_blockio", "libzmq", "_zmq", "_psutil", "_core.cpython"))
    ]
    assert not [name for name in shared if "msgspec" in name or "unicorn" in name]
    assert running.request("hypervisor", {})["partition_modules"] == []


def test_the_broker_counts_the_calls_that_it_serves(running: BrokerProcess) -> None:
    before = calls_of(running)
    for _ in range(10):
        running.port.get_partition_id()
    with pytest.raises(HypercallError):
        running.port.get_state(4711)
    after = calls_of(running)
    assert after["GET_PARTITION_ID"]["made"] - before.get("GET_PARTITION_ID", {"made": 0})["made"] == 10
    assert (
        after["GET_PARTITION_PROPERTY"]["refused"]
        == before.get("GET_PARTITION_PROPERTY", {"refused": 0})["refused"] + 1
    )
    assert all(row["mean_ns"] > 0 for row in after.values())
    portrait = running.request("hypervisor", {})  # the guest calls, too: by now there may be more than before
    made = sum(row["made"] for row in portrait["calls"])
    assert portrait["system_calls"]["recvmsg"] == portrait["hypercalls"] == made
    assert made >= sum(row["made"] for row in after.values())
    assert portrait["system_calls"]["epoll_wait"] > 0
    assert portrait["resident_bytes"] > 1 << 20


def calls_of(broker: BrokerProcess) -> dict[str, dict[str, int]]:
    return {row["call"]: row for row in broker.request("hypervisor", {})["calls"]}
