"""The broker as a real process: hypercalls over its sockets, partitions as its children, and their ends."""

import mmap
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bus import native
from bus.memory import MemorySlot
from runtime import codec
from runtime.abi import ExitStatus, HvStatus, HypercallError, MapFlags, PartitionState, Route
from tests.runtime.broker_process import (
    SINT,
    BrokerProcess,
    broker_process,
    is_alive,
    wait_readable,
    wait_until,
)


@pytest.fixture
def broker() -> Iterator[BrokerProcess]:
    with broker_process() as running:
        yield running


def _gone(broker: BrokerProcess, child: int) -> None:
    wait_until(lambda: broker.port.get_state(child) is PartitionState.FINALIZED)


# -- calls ---------------------------------------------------------------------------------------------------


def test_the_root_is_adopted_with_what_the_platform_said(broker: BrokerProcess) -> None:
    assert broker.adopted["id"] == 1
    assert broker.port.get_partition_id() == 1
    assert (broker.birth.name, broker.birth.args) == ("root", {"colour": "blue"})
    assert [vp.vp for vp in broker.birth.vps] == [0]


def test_new_pages_are_zeroed_sealed_and_of_the_size_asked_for(broker: BrokerProcess) -> None:
    slot = broker.port.map_gpa_pages(0x10, 3)
    with MemorySlot.from_fd(slot.fd, 0x10, 3) as memory:  # refuses what is not sealed, or has another size
        assert bytes(memory.memory) == bytes(3 * 4096)
    assert broker.port.unmap_gpa_pages(0x10, 3) == 1


def test_a_read_only_slot_cannot_be_mapped_for_writing(broker: BrokerProcess) -> None:
    slot = broker.port.map_gpa_pages(0x10, 1, MapFlags.READ)
    try:
        with pytest.raises(PermissionError):
            mmap.mmap(slot.fd, 4096)
        mmap.mmap(slot.fd, 4096, prot=mmap.PROT_READ).close()
    finally:
        os.close(slot.fd)


def test_a_partition_shares_pages_with_its_ancestor_and_only_them(broker: BrokerProcess) -> None:
    child = broker.spawn("share memory")
    assert broker.message() == (child, b"ready")
    (slot,) = broker.port.map_partition_pages(child, 0x101, 1, 0x9001)
    assert (slot.gpfn, slot.source_gpfn, slot.pages) == (0x9000, 0x100, 2)
    with MemorySlot.from_fd(slot.fd, slot.gpfn, slot.pages) as memory:
        assert bytes(memory.memory[:5]) == b"hello"
    broker.port.unmap_gpa_pages(slot.gpfn, slot.pages)


def test_a_program_gets_its_files_in_order(broker: BrokerProcess) -> None:
    pipes = [os.pipe() for _ in range(3)]
    child = broker.spawn("write files", files=[writer for _, writer in pipes])
    for _, writer in pipes:
        os.close(writer)
    for number, (reader, _) in enumerate(pipes):
        assert os.read(reader, 10) == b"%d" % number
        assert os.read(reader, 10) == b""  # neither the broker nor anyone else still holds the other end
        os.close(reader)
    broker.event("partition.exited", id=child, code=0)


def test_many_threads_share_one_port(broker: BrokerProcess) -> None:
    import threading

    wrong: list[object] = []

    def work(gpfn: int) -> None:
        for _ in range(30):
            slot = broker.port.map_gpa_pages(gpfn, 2)
            if slot.gpfn != gpfn or os.fstat(slot.fd).st_size != 2 * 4096:
                wrong.append(slot)
            os.close(slot.fd)
            broker.port.unmap_gpa_pages(gpfn, 2)

    threads = [threading.Thread(target=work, args=(0x100 * (number + 1),)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize(
    "packet",
    [b"\xc1", b"\x01", b"\x91\x46", b"\x93\x46\x80\x80", b"\x92\x46\x90", b"\x92\xa1x\x80", b"\xff" * 60_000],
)
def test_a_packet_of_junk_gets_one_answer_and_the_next_call_works(
    broker: BrokerProcess, packet: bytes
) -> None:
    broker.root_socket.send(packet)
    received = codec.receive_message(broker.root_socket)
    assert received is not None
    assert received[0] == [HvStatus.INVALID_HYPERCALL_INPUT, {}]
    assert broker.port.get_partition_id() == 1


def test_descriptors_nobody_asked_for_are_closed(broker: BrokerProcess) -> None:
    """More than a call may carry, to a call that takes none: the other ends see them all closed."""
    for count in (1, 16, 40):
        reader, writer = os.pipe()
        codec.send_packet(broker.root_socket, codec.encode([0x46, {}]), [writer] * count)
        os.close(writer)
        received = codec.receive_message(broker.root_socket)
        assert received is not None
        assert received[0] == [HvStatus.INVALID_HYPERCALL_INPUT, {}]
        assert os.read(reader, 1) == b""
        os.close(reader)


# -- messages and events -------------------------------------------------------------------------------------


def test_messages_go_both_ways_in_order(broker: BrokerProcess) -> None:
    """More than fit into the port at once, so both pending flags and end-of-message are at work."""
    child = broker.spawn("echo")
    assert broker.message() == (child, b"ready")
    sent = [number.to_bytes(2, "little") for number in range(100)]
    got: list[bytes] = []
    for payload in sent:
        broker.post(child, payload)
        if len(got) + 8 < len(sent) and len(sent) % 2 == 0:
            got.append(broker.message()[1])
    broker.post(child, b"")
    while len(got) < len(sent) + 1:
        got.append(broker.message()[1])
    assert got == [*sent, b""]
    broker.event("partition.exited", id=child, code=0)


@pytest.mark.parametrize("route", list(Route))
def test_doorbells_ring_both_ways_on_both_routes(broker: BrokerProcess, route: Route) -> None:
    child = broker.spawn("answer events", events=route)
    ours = broker.port.claim_port_doorbell(0x100 + child)
    theirs = broker.port.claim_connection_doorbell(0x200 + child)
    assert (ours.route, theirs.route) == (route, route)
    assert broker.message() == (child, b"ready")
    for _ in range(50):
        native.eventfd_signal(theirs.fd)
        wait_readable(ours.fd)
        os.read(ours.fd, 8)
        flags = native.flags_take_all(broker.sief, SINT)
        assert flags == ([child] if route is Route.BROKER else [])
    codec.close_all([ours.fd, theirs.fd])


def test_an_event_by_hypercall_rings_too(broker: BrokerProcess) -> None:
    child = broker.spawn("answer events", events=Route.DIRECT)
    ours = broker.port.claim_port_doorbell(0x100 + child)
    assert broker.message() == (child, b"ready")
    broker.port.signal_event(0x200 + child)
    wait_readable(ours.fd)
    os.close(ours.fd)


# -- lives and deaths ----------------------------------------------------------------------------------------


def test_a_partition_is_the_brokers_own_child(broker: BrokerProcess) -> None:
    child = broker.spawn("linger")
    pid = broker.event("partition.started", id=child)["pid"]
    status = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    assert int(status[1]) == broker.process.pid


@pytest.mark.parametrize(
    ("do", "args", "status"),
    [
        ("exit", {"code": 0}, ExitStatus(0, None)),
        ("exit", {"code": 7}, ExitStatus(7, None)),
        ("crash", {}, ExitStatus(None, signal.SIGSEGV)),
    ],
)
def test_a_childs_end_is_known_to_its_parent_and_to_the_platform(
    broker: BrokerProcess, do: str, args: dict[str, Any], status: ExitStatus
) -> None:
    watch = broker.port.watch_children()
    before = broker.port.balance()
    child = broker.spawn(do, **args)
    event = broker.event("partition.exited", id=child)
    assert (event["code"], event["signal"]) == (status.code, status.signal)
    wait_readable(watch)
    _gone(broker, child)
    assert broker.port.get_exit_status(child) == status
    broker.port.disconnect_port(child)
    broker.port.delete_port(child)
    broker.port.delete(child)
    broker.event("partition.deleted", id=child)
    assert broker.port.balance() == before
    os.close(watch)


def test_the_death_of_one_child_leaves_the_others_running(broker: BrokerProcess) -> None:
    victim, survivor = broker.spawn("echo"), broker.spawn("echo")
    assert {broker.message(), broker.message()} == {(victim, b"ready"), (survivor, b"ready")}
    os.kill(broker.event("partition.started", id=victim)["pid"], signal.SIGKILL)
    broker.event("partition.exited", id=victim, signal=signal.SIGKILL)
    with pytest.raises(HypercallError) as caught:
        broker.port.post_message(victim, 1, b"x")
    assert caught.value.status == HvStatus.INVALID_PORT_ID
    broker.post(survivor, b"still there?")
    assert broker.message() == (survivor, b"still there?")


def test_finalizing_kills_a_whole_subtree(broker: BrokerProcess) -> None:
    child = broker.spawn("have a child")
    assert broker.message() == (child, b"ready")
    outer = broker.event("partition.started", id=child)["pid"]
    inner = broker.event("partition.started", name=f"guest{child}/inner")
    assert broker.port.finalize(child) is PartitionState.FINALIZING
    broker.event("partition.deleted", id=inner["id"])
    _gone(broker, child)
    assert not is_alive(outer)
    assert not is_alive(inner["pid"])


def test_what_a_partition_leaves_behind_is_killed(broker: BrokerProcess) -> None:
    reader, writer = os.pipe()
    child = broker.spawn("leave an orphan", files=[writer])
    os.close(writer)
    orphan = int(os.read(reader, 20))
    broker.event("partition.exited", id=child)
    wait_until(lambda: not is_alive(orphan))
    os.close(reader)


@pytest.mark.parametrize("do", ["close the socket", "flood"])
def test_a_partition_that_breaks_the_calling_convention_is_killed(broker: BrokerProcess, do: str) -> None:
    child = broker.spawn(do)
    broker.event("partition.exited", id=child, signal=signal.SIGKILL)
    assert broker.port.get_partition_id() == 1


def test_a_child_killed_while_being_spawned_never_runs_on(broker: BrokerProcess) -> None:
    for _ in range(5):
        child = broker.spawn("linger")
        broker.port.finalize(child)
        broker.event("partition.exited", id=child)
        _gone(broker, child)


def test_a_program_that_cannot_be_spawned_is_a_child_that_died(broker: BrokerProcess) -> None:
    for module, reason in (("no.such.module", "no such module"), ("kill.the.zygote", "zygote was lost")):
        child = broker.port.create_partition()
        broker.port.deposit(child, 50)
        broker.port.initialize(child)
        broker.port.create_vp(0, child)
        broker.port.set_program(child, module, f"bad{child}")
        broker.port.start_vp(child)
        assert reason in broker.event("partition.exited", id=child)["reason"]
        assert broker.port.get_exit_status(child) == ExitStatus(127, None)
    child = broker.spawn("exit", code=5)  # a new zygote took over
    broker.event("partition.exited", id=child, code=5)


def test_no_descriptor_stays_behind_in_the_broker(broker: BrokerProcess) -> None:
    """Partitions come and go with everything they can have; the broker's table ends as it began."""

    def descriptors() -> int:
        return len(os.listdir(f"/proc/{broker.process.pid}/fd"))  # noqa: PTH208 -- only their number

    reader, writer = os.pipe()
    for round_number in range(3):
        child = broker.spawn("answer events", files=[writer], events=Route.BROKER)
        assert broker.message() == (child, b"ready")
        broker.port.finalize(child)
        broker.event("partition.exited", id=child)
        _gone(broker, child)
        for connection in (child, 0x200 + child):
            broker.port.disconnect_port(connection)
        for port in (child, 0x100 + child):
            broker.port.delete_port(port)
        broker.port.delete(child)
        if round_number == 0:  # what a call leads to is done when the next one is answered
            broker.port.get_partition_id()
            steady = descriptors()
    wait_until(lambda: descriptors() == steady)
    codec.close_all([reader, writer])
