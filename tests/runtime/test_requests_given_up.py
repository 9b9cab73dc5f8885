"""Requests that their client gives up: by their number, by nobody else, and only what leaves nothing behind."""

import contextlib
import signal
import threading
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import trio

from runtime.exits import ExitCode
from runtime.machine.management import REQUESTS_AT_ONCE_MAX
from runtime.machine.management_client import GivenUp, ManagementClient
from runtime.machine.rundir import machine_folder
from tests.patience import until
from tests.runtime.test_management import RawClient, ServedMachine, request


class Copying(ServedMachine):
    """A machine that saves until it is let go on, and says how that ended."""

    def __init__(self, folder: Any) -> None:
        super().__init__(folder)
        self.ends: list[str] = []
        self.saving: list[str] = []
        self.go_on = trio.Event()
        self.too_late = False
        self.control.operate = self.operate  # type: ignore[attr-defined]

    async def operate(self, operation: str, name: str, order: Mapping[str, Any]) -> Mapping[str, Any]:
        self.saving.append(name)
        try:
            with trio.CancelScope(shield=self.too_late):
                await self.go_on.wait()
        except BaseException:
            self.ends.append(f"{name} given up")
            raise
        self.ends.append(f"{name} saved")
        return {"saved": name}


@pytest.fixture
def machine(runtime_base: object) -> Iterator[Copying]:
    with machine_folder("m") as folder:
        served = Copying(folder)
        served.start()
        try:
            yield served
        finally:
            with contextlib.suppress(trio.RunFinishedError):
                served.do(served.go_on.set)
            served.end()


def save(number: int, name: str, operation: str = "save") -> bytes:
    return request("operate", number, operation=operation, name=name, order={})


def test_a_save_is_given_up_by_its_own_client_and_number_and_no_other(machine: Copying) -> None:
    with RawClient(machine.folder) as one, RawClient(machine.folder) as other:
        one.socket.send(save(7, "a"))
        one.socket.send(save(8, "b", "pause"))  # what changes something at once is not given up
        until(lambda: len(machine.saving) == 2)
        assert other.ask(request("cancel", 1, request=7))["result"] == {"cancelled": False}
        assert one.ask(request("cancel", 2, request=8))["result"] == {"cancelled": False}
        assert one.ask(request("cancel", 3, request=99))["result"] == {"cancelled": False}
        for bad in ({}, {"request": "7"}, {"request": 7, "more": 1}, {"request": None}):
            assert one.ask(request("cancel", 4, **bad))["error"]["status"] == "BAD_REQUEST"
        assert machine.ends == []
        assert one.ask(request("cancel", 5, request=7))["result"] == {"cancelled": True}
        given_up = one.read()
        assert (given_up["id"], given_up["error"]["status"]) == (7, "CANCELLED")
        assert machine.ends == ["a given up"]
        assert one.ask(request("cancel", 6, request=7))["result"] == {"cancelled": False}  # it is over
        machine.do(machine.go_on.set)
        assert one.read()["result"] == {"saved": "b"}


def test_a_save_is_given_up_though_too_many_requests_are_under_way(machine: Copying) -> None:
    with RawClient(machine.folder) as client:
        for number in range(REQUESTS_AT_ONCE_MAX):
            client.socket.send(save(number, str(number)))
        until(lambda: len(machine.saving) == REQUESTS_AT_ONCE_MAX)
        assert client.ask(save(1000, "more"))["error"]["status"] == "BUSY"
        assert client.ask(request("cancel", 1001, request=3))["result"] == {"cancelled": True}
        assert client.read()["id"] == 3


def _interrupt_once(machine: Copying, name: str, *then: Any) -> threading.Thread:
    """Ctrl-C, as soon as the machine saves `name`; then more, in the machine's thread."""

    def act() -> None:
        until(lambda: name in machine.saving)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
        for each in then:
            machine.do(each)

    thread = threading.Thread(target=act)
    thread.start()
    return thread


def test_ctrl_c_has_the_machine_give_it_up(machine: Copying) -> None:
    thread = _interrupt_once(machine, "a")
    with ManagementClient(machine.folder) as client:
        with pytest.raises(GivenUp, match="nothing has changed") as error:
            client.request_or_cancel("operate", operation="save", name="a", order={})
        assert error.value.exit_code == ExitCode.INTERRUPTED
        assert machine.ends == ["a given up"]
        assert client.request("status")["ready"]  # the connection is as good as before
    thread.join()


def test_ctrl_c_that_comes_too_late_changes_nothing(machine: Copying) -> None:
    machine.too_late = True
    thread = _interrupt_once(machine, "b", machine.go_on.set)
    with ManagementClient(machine.folder) as client:
        assert client.request_or_cancel("operate", operation="save", name="b", order={}) == {"saved": "b"}
    thread.join()
    assert machine.ends == ["b saved"]
