"""Every kind of fault, on machines that run: it fires, it does what docs/faults.md says, and healed it is over.

A group shares one machine, as its cases do not disturb each other: between two of them the guest's disk must work, and
nothing may be armed. What takes long, as processes are started anew for it, runs with --soak.
"""

import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import pytest

from partitions.faults.page_stalls import refusal
from runtime.chaos.faults.catalogue import FAULTS
from runtime.chaos.faults.consequences import CONSEQUENCES
from tests.machine import faults_of_disks as disks
from tests.machine import faults_of_messages as messages
from tests.machine import faults_of_processes as processes
from tests.machine import faults_of_rings as rings
from tests.machine import faults_of_the_hypervisor as hypervisor
from tests.machine import faults_that_kill as deaths
from tests.machine.probed_machine import ProbedMachine

pytestmark = pytest.mark.machine

Case = Callable[[ProbedMachine], None]

LIVING: Final[Mapping[str, Case]] = {
    "storage-error": disks.error,
    "storage-full": disks.full,
    "storage-slow": disks.slow,
    "storage-stuck": disks.stuck,
    "storage-lost-write": disks.lost_write,
    "storage-torn-write": disks.torn_write,
    "storage-misdirected-write": disks.misdirected_write,
    "storage-misdirected-read": disks.misdirected_read,
    "storage-corrupt-read": disks.corrupt_read,
    "storage-corrupt-write": disks.corrupt_write,
    "storage-stale-read": disks.stale_read,
    "storage-flush-error": disks.flush_error,
    "memory-revoked": disks.memory_revoked,
    "memory-slow": disks.memory_slow,
    "ring-bad-write-index": rings.bad_write_index,
    "ring-bad-read-index": rings.bad_read_index,
    "ring-index-storm": rings.index_storm,
    "ring-bad-request-header": rings.bad_request_header,
    "ring-bad-completion-header": rings.bad_completion_header,
    "ring-flip-request": rings.flip_request,
    "ring-flip-completion": rings.flip_completion,
    "ring-double-fetch": rings.double_fetch,
    "ring-replayed-id": rings.replayed_id,
    "ring-unknown-id": rings.unknown_id,
    "ring-twice": rings.twice,
    "ring-unsolicited": rings.unsolicited,
    "ring-lost": rings.lost,
    "ring-delayed": rings.delayed,
    "ring-not-drained": rings.not_drained,
    "ring-mask-stuck": rings.mask_stuck,
    "ring-pending-size": rings.pending_size,
    "interrupt-lost": hypervisor.interrupt_lost,
    "interrupt-duplicate": hypervisor.interrupt_duplicate,
    "interrupt-delayed": hypervisor.interrupt_delayed,
    "interrupt-storm": hypervisor.interrupt_storm,
    "timer-late": hypervisor.timer_late,
    "hypercall-slow": hypervisor.hypercall_slow,
    "hypercall-refused": hypervisor.hypercall_refused,
    "forge-partition-id": hypervisor.forge_partition_id,
    "forge-connection-id": hypervisor.forge_connection_id,
    "hypercall-garbage": hypervisor.hypercall_garbage,
    "memory-greed": hypervisor.memory_greed,
    "clock-skew": hypervisor.clock_skew,
    "clock-jump": hypervisor.clock_jump,
    **messages.MESSAGE_CASES,
    "rescind": messages.rescind,
    "rescind-during-open": messages.rescind_during_open,
    "offer-late": messages.offer_late,
    "offer-twice": messages.offer_twice,
    "forge-relid": messages.forge_relid,
    "forge-gpadl": messages.forge_gpadl,
    "console-flood": messages.console_flood,
    "stop": processes.stop,
    "starve": processes.starve,
    "stutter": processes.stutter,
    "signal-storm": processes.signal_storm,
    "limit-descriptors": processes.limit_descriptors,
    "limit-memory": processes.limit_memory,
    "limit-file-size": processes.limit_file_size,
    "limit-processes": processes.limit_processes,
    "busy-neighbours": processes.busy_neighbours,
    "management-flood": processes.management_flood,
    "all-late": processes.all_late,
}
DYING: Final[Mapping[str, Case]] = {
    "memory-stall": disks.memory_stall,
    "kill": deaths.kill,
    "fault-signal": deaths.fault_signal,
    "kill-at-step": deaths.kill_at_step,
    "kill-standby": deaths.kill_standby,
    "double-kill": deaths.double_kill,
    "storage-power-cut": deaths.power_cut,
    "storage-flush-lie": deaths.flush_lie,
    "power-cut-after-lies": deaths.power_cut_after_lies,
    "root-dies-while-disk-is-slow": deaths.root_dies_while_disk_is_slow,
}
# Whoever waits long between two deaths, or must not be rung by a successor, has a driver partition at his disk.
BESIDE_A_DRIVER: Final[Mapping[str, Case]] = {
    "synic-message-lost-across-reconnect": deaths.synic_message_lost_across_reconnect,
    "storm-under-takeover": deaths.storm_under_takeover,
    "interrupt-lost-across-reconnect": deaths.interrupt_lost_across_reconnect,
    "silence-across-reconnect": deaths.silence_across_reconnect,
    "kill-in-recovery": deaths.kill_in_recovery,
    "heartbeat-lost": deaths.heartbeat_lost,
    "crash-loop": deaths.crash_loop,
    "slow-start": deaths.slow_start,
    "kill-zygote": deaths.kill_zygote,
    "root-dies-without-a-zygote": deaths.root_dies_without_a_zygote,
}
GROUPS: Final = (LIVING, DYING, BESIDE_A_DRIVER)


@pytest.fixture
def machine(request: pytest.FixtureRequest, scratch: Path, runtime_dir: Path) -> Iterator[ProbedMachine]:
    settings: dict[str, Any] = {
        "on_root_failure": "standby",
        "hang_ms": 10_000,
        "stuck_ms": 60_000,  # what is stuck on purpose here is healed before anybody minds
        **getattr(request, "param", {}),
    }
    with ProbedMachine(scratch / "machine", runtime_dir, **settings) as machine:
        yield machine.begin()
    assert machine.left_behind() == []


def each_of(machine: ProbedMachine, cases: Mapping[str, Case]) -> None:
    """Every one of them, whatever the one before it did; then all that went wrong."""
    wrong: list[str] = []
    for kind, case in cases.items():
        try:
            case(machine)
            assert machine.request("injected")["injected"] == []
            machine.works()
        except Exception:
            wrong.append(f"{kind}, which should cause: {CONSEQUENCES[kind]}\n{traceback.format_exc()}")
            machine.request("heal", number=0)
            machine.reopen()
    assert not wrong, "\n\n".join(wrong)
    assert machine.count_of("fault.healed") >= len(cases)


def test_what_everybody_survives(machine: ProbedMachine) -> None:
    each_of(machine, LIVING)
    assert machine.count_of("root.exited") == 0
    assert machine.count_of("partition.exited") == 0


@pytest.mark.parametrize("machine", [{"sandbox": "off"}], indirect=True, ids=["unconfined"])
def test_what_ends_processes(machine: ProbedMachine) -> None:
    cases = dict(DYING)
    if refusal() is not None:  # the host has no userfaultfd for us
        del cases["memory-stall"]
    each_of(machine, cases)


@pytest.mark.soak
@pytest.mark.parametrize(
    "machine", [{"architecture": "disaggregated", "hang_ms": 2_000}], indirect=True, ids=["disaggregated"]
)
def test_what_ends_processes_beside_a_driver_partition(machine: ProbedMachine) -> None:
    each_of(machine, BESIDE_A_DRIVER)


def test_no_kind_is_without_its_case_and_its_consequence() -> None:
    kinds = [kind for cases in GROUPS for kind in cases]
    assert sorted(kinds) == sorted(FAULTS), "each kind is in one group"
    assert set(CONSEQUENCES) == set(FAULTS)
