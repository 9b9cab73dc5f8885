"""The calling side, against a hypervisor that answers whatever the test wants."""

import os
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from runtime import codec
from runtime.abi import (
    PARTITION_SELF,
    AccessGpaResult,
    ExitStatus,
    HvStatus,
    HypercallCode,
    HypercallError,
    HypervisorGone,
    InterceptType,
    MapFlags,
    PartitionProperty,
    PortType,
    Privilege,
    Route,
)
from runtime.hypercalls.arguments import ARGUMENTS, Kind
from runtime.hypercalls.caller import HypercallPort
from runtime.hypervisor import arguments
from runtime.statistics import StatsObject

_Answer = Callable[[int, dict[str, Any]], tuple[object, Sequence[int]]]


class FakeHypervisor:
    """Answers on a thread, and checks that each request is one that the real one would look at."""

    def __init__(self) -> None:
        ours, self.socket = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.port = HypercallPort(ours)
        self.requests: list[tuple[HypercallCode, dict[str, Any]]] = []
        self.wrong: list[str] = []
        self.answer: _Answer = lambda code, args: ([0, {}], [])
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while (received := codec.receive_message(self.socket)) is not None:
            message: Any = received[0]
            code, args = message
            try:
                arguments.check(HypercallCode(code), args)
            except Exception as error:
                self.wrong.append(f"{code:#x} {args}: {error!r}")
            self.requests.append((HypercallCode(code), args))
            codec.close_all(received[1])
            reply, fds = self.answer(code, args)
            codec.send_message(self.socket, reply, fds)

    def close(self) -> None:
        self.port.close()
        self._thread.join()
        self.socket.close()
        assert not self.wrong


@pytest.fixture
def fake() -> Iterator[FakeHypervisor]:
    hypervisor = FakeHypervisor()
    yield hypervisor
    hypervisor.close()


def _make_calls_on_devices_and_processors(port: HypercallPort, values: dict[str, object]) -> None:
    values |= {"slots": 2, "result": 0, "data": b"x", "vps": [3], "capabilities": 0, "newly_signaled": 1}
    values |= {"global_time": 9, "local_run_time": 8}
    port.create_device_domain(1)
    assert port.map_device_pages(1, 2, 3) == 2
    port.attach_device(1, 5)
    port.detach_device(5)
    assert port.unmap_device_pages(1, 2, 3) == 2
    port.delete_device_domain(1)
    assert port.read_gpa(5, 0x1000, 1) == (AccessGpaResult.SUCCESS, b"x")
    assert port.write_gpa(5, 0x1000, b"x") is AccessGpaResult.SUCCESS
    with pytest.raises(HypervisorGone):  # no descriptor came
        port.map_stats_page(StatsObject.VP, 0, 5)
    port.unmap_stats_page(StatsObject.VP, 0, 5)
    assert port.get_logical_processor_run_time(0).local_run_time == 8
    port.notify_long_spin_wait(5)
    port.send_interrupt(0x40, [0, 2])
    assert port.get_vp_indexes([3]) == [3]
    assert port.query_extended_capabilities() == 0
    assert port.signal_event_direct(5, 0, 2, 3)
    port.post_message_direct(5, 0, 2, 1, b"x")
    port.create_port_deprecated(1, 5, PortType.MESSAGE, 2)
    port.connect_port_deprecated(1, 5, 2)
    values["slots"] = []
    assert port.map_sparse_pages(5, {1: 2}) == []
    values |= {"sent": 4, "merged": 1, "suppressed": 1, "delivered": 1, "pending": 1, "value": 6, "left": 0}
    assert port.get_port_counts(1).sent == 4
    port.move_port(1, 2)
    port.assert_interrupt(5, 0, 0x40)
    with pytest.raises(HypervisorGone):  # no descriptor came
        port.claim_interrupt_page(0)
    port.intercept_ports(5, 0x60, 0x64)
    port.complete_intercept(5, 0, InterceptType.IO_PORT, 7)
    assert port.access_port(0, 0x60, 1).value == 6
    assert port.access_memory(0, 0x1000, 4) == 6


def test_every_method_sends_arguments_that_the_abi_declares(fake: FakeHypervisor) -> None:
    """Between them the methods make every call there is."""
    port = fake.port
    values: dict[str, object] = {
        "partition": 5,
        "state": 1,
        "value": 1,
        "available": 3,
        "in_use": 4,
        "slots": [{"gpfn": 1, "source_gpfn": 2, "pages": 3, "flags": 1}],
        "values": [9],
    }
    fake.answer = lambda code, args: ([0, values], [])
    assert port.get_partition_id() == 5
    assert port.get_next_child(3) == 5
    assert port.create_partition() == 5
    port.initialize(5)
    assert port.finalize(5) == 1
    port.delete(5)
    assert port.get_property(5, PartitionProperty.CPU_WEIGHT) == 1
    port.set_property(5, PartitionProperty.CPU_WEIGHT, 100)
    port.set_privileges(5, Privilege.POST_MESSAGES)
    assert port.get_exit_status(5) == ExitStatus(1, None)
    port.set_program(5, "a.b", "name", {"k": 1}, [0])
    port.deposit(5, 10)
    port.withdraw(5, 10)
    assert port.balance(5).in_use_pages == 4
    assert port.map_gpa_pages(1, 2).fd == -1
    assert port.map_partition_pages(5, 1, 2, 3, MapFlags.READ)[0].source_gpfn == 2
    values["slots"] = 1
    assert port.unmap_gpa_pages(1, 2) == 1
    values["slots"] = []
    assert port.claim_gpa_pages(1, 2) == []
    assert port.create_vp(1, 5) is None
    port.delete_vp(1, 5)
    port.start_vp(5)
    port.load_driver(5)
    assert port.get_vp_registers([1], 0) == [9]
    port.enable_synic(0, [2, 3])
    port.mask_sint(0, 2)
    port.end_of_message(0)
    port.create_port(1, 5, PortType.EVENT, 2, partition=6, base_flag=1, flag_count=1)
    port.delete_port(1)
    port.connect_port(1, 5, 2, route=Route.DIRECT)
    port.disconnect_port(1)
    assert port.get_posted_messages(1) == 1
    port.heartbeat(100)
    port.post_message(1, 1, b"x")
    port.signal_event(1, 2)
    for call in (port.watch_children, lambda: port.claim_port_doorbell(1)):
        with pytest.raises(HypervisorGone):  # no descriptor came
            call()
    for claim in (port.claim_connection_doorbell, port.claim_port_endpoint, port.claim_connection_endpoint):
        with pytest.raises(HypervisorGone):
            claim(1)
    values["value"] = {"module": "a.b", "name": "n", "args": {}, "files": 0}
    assert port.get_program(5).module == "a.b"
    values |= {"name": "n", "program": "a.b", "args": {}, "vps": [], "files": 0}
    assert port.get_birth().name == "n"
    _make_calls_on_devices_and_processors(port, values)
    assert {code for code, _ in fake.requests} == set(HypercallCode)


def test_descriptors_are_sorted_out_by_vp_and_then_files(fake: FakeHypervisor) -> None:
    files = [os.memfd_create(str(number)) for number in range(8)]
    values = {"partition": 2, "name": "n", "program": "m", "args": {}, "vps": [0, 3], "files": 2}
    fake.answer = lambda code, args: ([0, values], files)
    birth = fake.port.get_birth()
    got = [fd for vp in birth.vps for fd in (vp.sim_fd, vp.sief_fd, vp.line_fd)] + birth.files
    assert [vp.vp for vp in birth.vps] == [0, 3]
    assert [os.fstat(fd).st_ino for fd in got] == [os.fstat(fd).st_ino for fd in files]
    values["files"] = 1
    with pytest.raises(HypervisorGone):
        fake.port.get_birth()
    codec.close_all(got + files)


def test_a_refusal_carries_call_and_status_and_leaves_no_descriptor(fake: FakeHypervisor) -> None:
    reader, writer = os.pipe()
    fake.answer = lambda code, args: ([int(HvStatus.ACCESS_DENIED), {}], [writer])
    with pytest.raises(HypercallError) as caught:
        fake.port.deposit(1, 1)
    assert (caught.value.call, caught.value.status) == (HypercallCode.DEPOSIT_MEMORY, HvStatus.ACCESS_DENIED)
    os.close(writer)
    assert os.read(reader, 1) == b""
    os.close(reader)


def test_no_exit_status_yet_is_none_and_other_refusals_stay_errors(fake: FakeHypervisor) -> None:
    fake.answer = lambda code, args: ([int(HvStatus.NO_DATA), {}], [])
    assert fake.port.get_exit_status(5) is None
    fake.answer = lambda code, args: ([int(HvStatus.INVALID_PARTITION_ID), {}], [])
    with pytest.raises(HypercallError):
        fake.port.get_exit_status(5)


@pytest.mark.parametrize(
    "reply", [[], {}, [0], ["0", {}], [0, []], [0, {"partition": "five"}], 7, [0x999, {}]]
)
def test_a_reply_of_another_shape_is_no_hypervisor(fake: FakeHypervisor, reply: object) -> None:
    fake.answer = lambda code, args: (reply, [])
    with pytest.raises(HypervisorGone):
        fake.port.get_partition_id()


def test_the_end_of_file_is_hypervisor_gone() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    port = HypercallPort(ours)
    theirs.close()
    for _ in range(2):
        with pytest.raises(HypervisorGone):
            port.get_partition_id()
    port.close()


def test_each_thread_gets_its_own_answer(fake: FakeHypervisor) -> None:
    fake.answer = lambda code, args: ([0, {"partition": args["previous"] + 1}], [])
    wrong: list[int] = []

    def work(first: int) -> None:
        numbers = range(first, first + 200)
        wrong.extend(number for number in numbers if fake.port.get_next_child(number) != number + 1)

    threads = [threading.Thread(target=work, args=(1000 * number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_leaving_out_an_argument_means_self_or_its_default() -> None:
    for declared in ARGUMENTS.values():
        for entry in declared:
            if entry.name == "partition":
                assert entry.default == PARTITION_SELF
            if entry.kind is not Kind.UINT:
                assert entry.required
