"""Statistics pages, suspension, memory access and device domains, with real pages and real processes."""

import mmap
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from runtime.abi import (
    AccessGpaResult,
    HvStatus,
    HypercallCode,
    HypercallError,
    MapFlags,
    PartitionProperty,
)
from runtime.statistics import StatsObject
from tests.runtime.broker_process import SINT, BrokerProcess, broker_process, wait_until


@pytest.fixture(scope="module")
def broker() -> Iterator[BrokerProcess]:
    with broker_process() as process:
        yield process


@pytest.fixture
def guest(broker: BrokerProcess) -> Iterator[int]:
    child = broker.spawn("echo")
    assert broker.message() == (child, b"ready")
    yield child
    broker.port.finalize(child)
    broker.event("partition.exited", id=child)
    broker.port.delete(child)
    broker.port.delete_port(child)


def test_a_statistics_page_is_written_by_the_hypervisor_and_by_nobody_else(
    broker: BrokerProcess, guest: int
) -> None:
    port = broker.port
    with port.map_stats_page(StatsObject.PARTITION, partition=guest) as page:
        first = page.read()
        assert first.counters["virtual_processors"] == 1
        assert first.counters["pages_available"] == port.balance(guest).available_pages
        assert first.counters["hypercalls"] > 0
        port.create_vp(1, guest)
        wait_until(lambda: page.read().counters["virtual_processors"] == 2)
        assert page.read().time_100ns > first.time_100ns
        assert page.read().counters["run_time"] > 0
        result = port.call(
            HypercallCode.MAP_STATS_PAGE, partition=guest, type=int(StatsObject.PARTITION), index=0
        )
        fd = result.one_fd()
        try:
            with pytest.raises(PermissionError):
                mmap.mmap(fd, 4096, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
            with pytest.raises(OSError, match="Bad file descriptor"):
                os.pwrite(fd, b"x", 0)
            again = os.open(f"/proc/self/fd/{fd}", os.O_RDWR)  # its seals hold for any descriptor
            try:
                with pytest.raises(PermissionError):
                    os.pwrite(again, b"x", 0)
            finally:
                os.close(again)
        finally:
            os.close(fd)
        port.delete_vp(1, guest)
        port.unmap_stats_page(StatsObject.PARTITION, partition=guest)


def test_a_page_outlives_its_object_and_says_so(broker: BrokerProcess) -> None:
    child = broker.port.create_partition()
    with broker.port.map_stats_page(StatsObject.PARTITION, partition=child) as page:
        assert page.read().live
        broker.port.delete(child)
        assert not page.read().live


def test_the_hypervisor_and_its_processors_have_pages_too(broker: BrokerProcess) -> None:
    port = broker.port
    with port.map_stats_page(StatsObject.HYPERVISOR) as page:
        counters = page.read().counters
        assert counters["run_time"] > 0
        assert counters["logical_processors"] == os.cpu_count()
        assert counters["partitions"] >= 1
    with port.map_stats_page(StatsObject.LOGICAL_PROCESSOR, 0) as page:
        busy = page.read().counters
        assert busy["run_time"] + busy["idle_time"] > 0
    earlier = port.get_logical_processor_run_time(0)
    deadline = time.monotonic() + 20
    while port.get_logical_processor_run_time(0).local_run_time == earlier.local_run_time:
        assert time.monotonic() < deadline
    assert port.get_logical_processor_run_time(0).global_time > earlier.global_time
    for kind, index in ((StatsObject.HYPERVISOR, 0), (StatsObject.LOGICAL_PROCESSOR, 0)):
        port.unmap_stats_page(kind, index)


def test_a_suspended_guest_answers_once_it_goes_on(broker: BrokerProcess, guest: int) -> None:
    port = broker.port
    pid = next(fields["pid"] for fields in broker.request("list", {})["partitions"] if fields["id"] == guest)

    def is_stopped() -> bool:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"

    port.suspend(guest)
    wait_until(is_stopped)
    assert port.get_property(guest, PartitionProperty.SUSPEND) == 1
    broker.post(guest, b"are you there")
    port.resume(guest)
    assert broker.message() == (guest, b"are you there")
    assert not is_stopped()


def test_a_suspended_guest_can_be_killed(broker: BrokerProcess, guest: int) -> None:
    broker.port.suspend(guest)


def test_a_parent_reads_what_its_child_has_mapped_and_the_other_way_round(
    broker: BrokerProcess, guest: int
) -> None:
    port = broker.port
    port.map_gpa_pages(0x100, 2, partition=guest)
    (slot,) = port.map_partition_pages(guest, 0x100, 1, 0x5000)
    try:
        with mmap.mmap(slot.fd, 2 * 4096) as memory:
            memory[4096:4099] = b"abc"
            assert port.read_gpa(guest, 0x101 << 12, 3) == (AccessGpaResult.SUCCESS, b"abc")
            assert port.write_gpa(guest, (0x101 << 12) + 3, b"def") == AccessGpaResult.SUCCESS
            assert memory[4096:4102] == b"abcdef"
    finally:
        os.close(slot.fd)
    assert port.read_gpa(guest, 0x900 << 12, 3) == (AccessGpaResult.UNMAPPED, b"")
    port.unmap_gpa_pages(0x5000, 2)


def test_events_and_messages_go_into_a_child_directly(broker: BrokerProcess, guest: int) -> None:
    port = broker.port
    port.post_message_direct(guest, 0, SINT, 1, b"straight")
    assert broker.message() == (guest, b"straight")
    assert port.signal_event_direct(guest, 0, SINT, 100)
    assert not port.signal_event_direct(guest, 0, SINT, 100)


def test_a_device_domain_keeps_foreign_pages_out_of_a_real_driver(broker: BrokerProcess, guest: int) -> None:
    port = broker.port
    for gpfn in (0x100, 0x200):
        port.map_gpa_pages(gpfn, 2, partition=guest)
    driver = port.create_partition()
    port.deposit(driver, 50)
    port.initialize(driver)
    port.create_device_domain(1, guest)
    assert port.map_device_pages(1, 0x100, 1, partition=guest) == 1
    port.attach_device(1, driver, guest)
    with pytest.raises(HypercallError) as refused:
        port.map_partition_pages(guest, 0x200, 1, 0x200, partition=driver)
    assert refused.value.status == HvStatus.ACCESS_DENIED
    (slot,) = port.map_sparse_pages(guest, {0x900: 0x100}, MapFlags.READ, driver)
    assert (slot.gpfn, slot.pages, slot.fd) == (0x900, 2, -1)
    with pytest.raises(HypercallError) as refused:
        port.unmap_device_pages(1, 0x100, 2, guest)
    assert refused.value.status == HvStatus.OBJECT_IN_USE
    port.finalize(driver)
    port.delete(driver)
    assert port.unmap_device_pages(1, 0x100, 2, guest) == 1
    port.delete_device_domain(1, guest)


def test_the_small_calls_answer(broker: BrokerProcess) -> None:
    port = broker.port
    assert port.query_extended_capabilities() == 0
    assert port.get_vp_indexes([0]) == [0]
    port.notify_long_spin_wait(1_000)
    port.send_interrupt(0x40, [0])
    assert port.get_property(1, PartitionProperty.PROCESSOR_VENDOR) in (0, 1, 2, 2**16)
