"""A client without rings whose request a predecessor had begun: what fails again in the successor holds nobody up."""

import contextlib
import os
import queue
import threading
import time
from typing import cast

import pytest

from bus.native import Channel
from partitions.stack.back_off import WORKER_FAILURES_MAX
from partitions.stack.served_endpoint import ServedEndpoint
from partitions.storage._blockio import DeviceLock
from partitions.storage.disk import Disk
from partitions.storage.errors import DiskCommandError
from partitions.storage.message_service import MessageService
from runtime.abi import HvStatus, HypercallCode, HypercallError, MapFlags
from runtime.hypercalls.caller import HypercallPort, MappedSlot
from tests.partitions.message_world import (
    GPFN,
    CountingBackend,
    Crash,
    MessageServer,
    message_channel,
    message_server,
)

PATIENCE_S = 20.0


@pytest.mark.parametrize("failures", [0, 1, 3])
def test_a_request_that_was_executed_after_all_gives_the_device_back(failures: int) -> None:
    """Its service fails in the middle of it, again and again; the client sends it again, and then it is done."""
    left = failures
    with message_server() as server, message_channel(server.connect) as (channel, area):
        disk = Disk(cast("Channel", channel), area, GPFN, timeout_s=PATIENCE_S)

        def fail() -> None:
            nonlocal left
            if left:
                left -= 1
                raise Crash

        server.backend.fail = fail
        disk.write(0, bytes(4096))
        entered = threading.Event()

        def neighbour() -> None:
            with server.lock:
                entered.set()

        waiting = threading.Thread(target=neighbour, daemon=True)
        waiting.start()
        assert entered.wait(PATIENCE_S), "the device is held for ever"
        waiting.join(PATIENCE_S)
        assert left == 0


class Port:
    """The port of one client, as a hypervisor has it."""

    def __init__(self, server: MessageServer) -> None:
        self._server = server
        self._bell = os.eventfd(0, os.EFD_NONBLOCK)

    def claim_port_doorbell(self, port: int) -> MappedSlot:
        return MappedSlot(0, 0, 0, MapFlags.READ, os.dup(self._bell))

    def claim_port_endpoint(self, port: int) -> int:
        try:
            fd = self._server.ends.get_nowait()
        except queue.Empty:
            raise HypercallError(HypercallCode.CONNECT_PORT, HvStatus.NO_DATA) from None
        assert fd is not None
        return fd

    def ring(self) -> None:
        os.eventfd_write(self._bell, 1)

    def close(self) -> None:
        os.close(self._bell)


@pytest.mark.parametrize(("failures", "done"), [(0, True), (2, True), (1000, False)])
def test_what_fails_again_in_a_successor_holds_nobody_up(
    failures: int, done: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    """A request that was begun: it is tried again until it is done, or refused, and then others have the device."""
    left = failures
    server = MessageServer(CountingBackend())
    server.start()  # the predecessor, who lets the request's session be set up
    with contextlib.closing(Port(server)) as port, message_channel(server.connect) as (channel, area):
        disk = Disk(cast("Channel", channel), area, GPFN, timeout_s=PATIENCE_S)
        begun = threading.Event()

        def crash() -> None:
            begun.set()
            raise Crash

        server.backend.fail = crash
        errors: list[Exception] = []

        def write() -> None:
            try:
                disk.write(0, bytes(4096))
            except DiskCommandError as error:
                errors.append(error)

        writer = threading.Thread(target=write, daemon=True)
        writer.start()
        assert begun.wait(PATIENCE_S)
        server.stop()

        def fail() -> None:
            nonlocal left
            if left:
                left -= 1
                raise ZeroDivisionError("a defect")

        server.backend.fail = fail
        lock = DeviceLock()
        service = MessageService(server.backend, server.record, serial="messages", lock=lock)
        endpoint = ServedEndpoint(cast(HypercallPort, port), 1, service)
        assert endpoint.was_executing
        replaying = threading.Thread(target=endpoint.replay, daemon=True)
        replaying.start()
        while replaying.is_alive():
            port.ring()
            time.sleep(0.002)
        with lock:
            pass
        endpoint.start("client", lambda end: None)
        while writer.is_alive():
            port.ring()
            time.sleep(0.002)
        assert bool(server.backend.writes) == done
        assert bool(errors) != done
        assert endpoint.stop()
        endpoint.release()
        assert capsys.readouterr().err.count("ZeroDivisionError: a defect") == min(
            failures, WORKER_FAILURES_MAX
        )
