"""Who is called by messages keeps to a budget, too: what a caller may have of its server's time, and no more."""

import os
import queue
import socket
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import cast

import pytest

from bus.native import Channel, ServiceBudget
from partitions.calls.endpoint_service import EndpointService
from partitions.stack.served_endpoint import ServedEndpoint
from partitions.storage._blockio import DeviceLock
from partitions.storage.disk import Disk
from partitions.storage.message_service import MessageService
from runtime.abi import HvStatus, HypercallCode, HypercallError, MapFlags
from runtime.hypercalls.caller import HypercallPort, MappedSlot
from tests.partitions.message_world import GPFN, PlainBackend, message_channel
from tests.patience import until

ONE = 65536  # a whole processor
BURST_NS = 25_000_000  # bus/native/service_budget.h, SERVICE_BURST_NS
TURN_NS = 2_000_000  # that a call takes here
CALLS = 40


class Port:
    """The port of one client, as a hypervisor has it."""

    def __init__(self) -> None:
        self.ends: queue.SimpleQueue[socket.socket] = queue.SimpleQueue()
        self.bell = os.eventfd(0, os.EFD_NONBLOCK)

    def claim_port_doorbell(self, port: int) -> MappedSlot:
        return MappedSlot(0, 0, 0, MapFlags.READ, os.dup(self.bell))

    def claim_port_endpoint(self, port: int) -> int:
        try:
            return self.ends.get_nowait().detach()
        except queue.Empty:
            raise HypercallError(HypercallCode.CLAIM_ENDPOINT, HvStatus.NO_DATA) from None

    def connect(self) -> socket.socket:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.ends.put(ours)
        os.eventfd_write(self.bell, 1)
        return theirs


class Busy:
    """Burns TURN_NS of its thread's time for each call, or has broken the protocol, as the call says."""

    phase, settled, busy, served, refuses_resent = 0, True, False, 0, False

    def serve_one(self, sock: socket.socket) -> bool:
        call = sock.recv(16)
        ends_ns = time.thread_time_ns() + TURN_NS
        while time.thread_time_ns() < ends_ns:
            pass
        if call == b"good":
            sock.send(call, socket.MSG_NOSIGNAL)
        return call == b"good"

    serve = serve_one

    def let_go(self) -> None: ...


@contextmanager
def served(
    budget: ServiceBudget, service: EndpointService | None = None
) -> Iterator[tuple[Port, ServedEndpoint]]:
    port = Port()
    service = service or cast(EndpointService, Busy())
    endpoint = ServedEndpoint(cast(HypercallPort, port), 1, service, budget=budget)
    endpoint.start("served", lambda end: None)
    try:
        yield port, endpoint
    finally:
        assert endpoint.stop()
        endpoint.release()
        while not port.ends.empty():  # it rested, and did not take the last one
            port.ends.get().close()
        os.close(port.bell)


@pytest.mark.parametrize("call", [b"good", b"bad"])
def test_a_caller_gets_its_share_of_its_server_and_no_more(call: bytes) -> None:
    """Also who breaks the protocol with each call, and connects anew. Another one's server does not rest."""
    budget, free = ServiceBudget(ONE // 4), ServiceBudget()
    with served(budget) as (port, _), served(free) as (other, _), closing(other.connect()) as honest:
        begun_ns, sock = time.monotonic_ns(), port.connect()
        for _ in range(CALLS):
            sock.send(call)
            if sock.recv(16) == b"":
                sock.close()
                sock = port.connect()
        elapsed_ns = time.monotonic_ns() - begun_ns
        sock.close()
        paid_ns = budget.statistics()["served_ns"]
        assert paid_ns >= (CALLS - 1) * TURN_NS, "the last one's reply comes before it is paid for"
        assert paid_ns <= (elapsed_ns + BURST_NS) / 4 + 4 * TURN_NS
        honest.send(b"good")
        honest.recv(16)
        assert free.statistics()["served_ns"] == 0


def test_one_that_rests_is_stopped_as_any_other() -> None:
    budget = ServiceBudget(1)  # a call is a rest of more than a minute
    with served(budget) as (port, endpoint), closing(port.connect()) as sock:
        sock.send(b"good")
        assert sock.recv(16) == b"good"
        until(lambda: budget.debt_ns() > 0)  # it is paid for after the reply
        assert endpoint.stop(), "it hears of that while it rests"


def test_what_c_serves_of_a_disk_is_paid_for_as_well() -> None:
    """Its caller never leaves anything to Python; so C comes back after each turn."""
    budget, backend = ServiceBudget(ONE), PlainBackend()
    service = MessageService(backend, memoryview(bytearray(64)), serial="messages", lock=DeviceLock())
    with (
        served(budget, service) as (port, _),
        message_channel(lambda: port.connect().detach()) as (channel, area),
    ):
        disk = Disk(cast("Channel", channel), area, GPFN)
        paid_ns = []
        for _ in range(4):  # each more than a turn
            for _ in range(100):
                disk.read(0, 4096)
            paid_ns.append(budget.statistics()["served_ns"])
        assert paid_ns == sorted(set(paid_ns))
        assert service.statistics()["reads"] == 400
