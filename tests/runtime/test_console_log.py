"""Records on the console line: whoever wrote them, they end in the event log under the right name."""

import os
from collections.abc import Iterator

import msgpack  # type: ignore[import-untyped]
import pytest

from runtime.machine.console import ConsoleWriter
from runtime.machine.console_log import ConsoleLog
from runtime.machine.events import Event, EventLog
from runtime.reserved_names import ROOT


class Console:
    """A console line whose one writer is this process."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        log = EventLog()
        log.listen(lambda event, encoded: self.events.append(event))
        self.log = ConsoleLog(log)
        self.writer = ConsoleWriter(os.dup(self.log.writer.fileno()))

    def said_by(self, writer: ConsoleWriter) -> Event:
        writer.emit("guest.progress", step=len(self.events))
        self.log.drain()
        return self.events[-1]

    def say(self, kind: str, fields: dict[str, object]) -> Event:
        self.writer._socket.send(msgpack.packb({"kind": kind, "fields": fields}))
        self.log.drain()
        return self.events[-1]


@pytest.fixture
def console() -> Iterator[Console]:
    made = Console()
    yield made
    made.log.close()
    made.writer._socket.close()


@pytest.mark.parametrize("name", [ROOT, "guest"])
@pytest.mark.parametrize("field", ["self", "kind", "partition"])
def test_no_field_of_a_record_takes_the_place_of_what_the_log_itself_says(
    console: Console, name: str, field: str
) -> None:
    console.log.name(os.getpid(), name)
    event = console.say("guest.progress", {field: 3})
    assert (event.kind, event.partition, event.fields) == ("guest.progress", name, {f"{field}_": 3})


def test_the_root_alone_says_what_another_partition_put_on_its_serial_line(console: Console) -> None:
    console.log.name(os.getpid(), ROOT)
    line: dict[str, object] = {"stream": "serial", "text": "hello"}
    event = console.say("output", line | {"partition": "guest"})
    assert (event.kind, event.partition, event.fields) == ("output", "guest", line)
    console.log.name(os.getpid(), "liar")
    event = console.say("output", line | {"partition": "guest"})
    assert (event.partition, event.fields) == ("liar", line | {"partition_": "guest"})


def test_who_lives_in_the_hypervisor_says_which_partition_it_is_and_nobody_else_does(
    console: Console,
) -> None:
    """A monolithic machine's drivers are threads of one process, which has several names."""
    resident = ConsoleWriter(os.dup(console.log.writer.fileno()), speaks_for="disk0")
    console.log.name(os.getpid(), "net0")
    assert console.said_by(resident).partition == "net0"
    console.log.holds_partitions(os.getpid())
    assert console.said_by(resident).partition == "disk0"
    assert console.said_by(console.writer).partition == "net0"
    liar = ConsoleWriter(os.dup(console.log.writer.fileno()), speaks_for=ROOT)
    assert console.said_by(liar).partition == "net0"
    for writer in (resident, liar):
        writer._socket.close()
