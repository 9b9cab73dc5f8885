"""Who answers intercepts: a real broker, a real guest, and the emulation host of a parent whose loop is this test's."""

import threading
from collections.abc import Callable, Iterator

import pytest
import trio

from partitions.emulated.host import EmulationHost
from partitions.vp.processor import VirtualProcessor
from runtime.abi import PartitionState
from tests.runtime.broker_process import BrokerProcess, broker_process, wait_until

_ACCESSES = 20


@pytest.fixture
def broker(monkeypatch: pytest.MonkeyPatch) -> Iterator[BrokerProcess]:
    def run(vp: VirtualProcessor, function: Callable[[VirtualProcessor], object]) -> threading.Thread:
        thread = threading.Thread(target=function, args=(vp,), daemon=True)
        thread.start()
        return thread

    # The broker takes another process for the root's, and would not believe that this thread is one of the root's.
    monkeypatch.setattr(VirtualProcessor, "run", run)
    with broker_process() as running:
        yield running


def _host(broker: BrokerProcess, nursery: trio.Nursery) -> tuple[EmulationHost, int]:
    """And a guest of its, with a UART, not started yet."""
    host = EmulationHost(broker.port, broker.birth, nursery, lambda kind, **fields: None)
    table = {"name": "pc", "memory": 1 << 20, "emulated": [{"kind": "uart"}]}
    host.expect([table], lambda gpfn, pages: [broker.port.map_gpa_pages(gpfn, pages)])
    child = broker.spawn("access ports", count=_ACCESSES, links=False, start=False)
    host.attach(child, "pc", {})
    return host, child


def test_accesses_are_answered_however_busy_the_event_loop_is(broker: BrokerProcess) -> None:
    async def busy() -> None:
        async with trio.open_nursery() as nursery:
            host, child = _host(broker, nursery)
            host.start()
            broker.port.start_vp(child)
            # No checkpoint until the guest has ended, which it does when all its accesses are answered.
            wait_until(lambda: broker.port.get_state(child) is PartitionState.FINALIZED)
            status = broker.port.get_exit_status(child)
            assert status is not None
            assert status.signal is None

    trio.run(busy)


def test_an_emulator_that_raises_ends_its_parent_instead_of_leaving_its_guests_waiting(
    broker: BrokerProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    def raise_it(*arguments: object) -> None:
        raise ZeroDivisionError

    async def serve() -> None:
        async with trio.open_nursery() as nursery:
            host, child = _host(broker, nursery)
            monkeypatch.setattr(host, "_answer", raise_it)
            host.start()
            broker.port.start_vp(child)
            with trio.fail_after(20):
                await trio.sleep_forever()

    with pytest.raises(BaseExceptionGroup) as caught:
        trio.run(serve)
    assert caught.group_contains(ZeroDivisionError)
