"""The walls, each in a process of its own: what the kernel then refuses, and what it does not."""

import errno
import json
import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from partitions.sandbox import apply, cost, limits, syscalls
from partitions.sandbox.profiles import Profile
from partitions.sandbox.readable import Readable
from runtime.config.sandbox import SandboxMode, SandboxOrders
from runtime.config.tap_order import TapOrder
from runtime.hypervisor.zygote import confines_somebody

pytestmark = pytest.mark.skipif(not syscalls.are_known_here(), reason="the filter is for x86-64")


def in_a_child(act: Callable[[], object]) -> object:
    """What `act` gives, as JSON has it, or the name of its error."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        if (pid := os.fork()) == 0:
            said: object = None
            try:
                said = act()
            except OSError as error:
                said = errno.errorcode.get(error.errno or 0, str(error))
            except BaseException as error:
                said = repr(error)
            finally:
                try:
                    theirs.send(json.dumps(said).encode())
                finally:  # also where there is no memory for that any more: two processes must not go on with the tests
                    os._exit(0)
        theirs.close()
        said = json.loads(ours.recv(1 << 16))
        os.waitpid(pid, 0)
    return said


def opening(path: Path, flags: int) -> str:
    try:
        os.close(os.open(path, flags))
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return "opened"


def test_the_root_opens_its_devices_and_no_neighbour_of_theirs(tmp_path: Path) -> None:
    disk, neighbour = tmp_path / "disk.img", tmp_path / "other.img"
    for path in (disk, neighbour):
        path.write_bytes(bytes(512))

    def act() -> object:
        missing = apply.enter_root([{"name": "disk0", "kind": "disk", "path": str(disk)}], SandboxMode.ON)
        made = opening(tmp_path / "new", os.O_CREAT | os.O_RDWR)
        return [list(missing), opening(disk, os.O_RDWR), opening(neighbour, os.O_RDONLY), made]

    said = in_a_child(act)
    assert isinstance(said, list)
    missing, own, other, made = said
    if "Landlock" in missing:
        pytest.skip("this host has no Landlock")
    assert (own, other, made) == ("opened", "EACCES", "EACCES")


def test_of_a_folder_on_the_search_path_only_what_can_be_imported_is_readable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "program.py").write_text("")
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "__init__.py").write_text("")
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "disk.img").write_text("")
    (tmp_path / ".ssh").mkdir()
    (tmp_path / ".ssh" / "id.py").write_text("")  # no module search enters a folder of such a name
    (tmp_path / "secret.txt").write_text("")
    (tmp_path / "backup.zip").write_text("")
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    readable = Readable.find()
    try:
        inside = {entry.path for entry in readable.entries if entry.path.startswith(str(tmp_path))}
        assert inside == {str(tmp_path / "program.py"), str(tmp_path / "package")}
        assert str(tmp_path) in {entry.path for entry in readable.listed}
        assert "/" not in {entry.path for entry in readable.entries}
        assert not [entry for entry in readable.entries if entry.path in (str(Path.home()), "/etc", "/proc")]
    finally:
        readable.close()


@pytest.mark.parametrize("more", [1, 64 << 20])
def test_private_memory_ends_where_the_grant_does(more: int) -> None:
    """Guest pages count once more, for the program's own data; shared memory not at all."""
    grant = limits.Grant(pages=16 << 8, vps=2, files=0)
    assert grant.private_bytes == limits.INTERPRETER_BYTES + (16 << 20) + 2 * limits.STACK_BYTES

    def act() -> object:
        limits.impose(grant, count_threads=False)
        try:
            return len(bytearray(grant.private_bytes + more))
        except MemoryError:
            return "MemoryError"

    assert in_a_child(act) == "MemoryError"


def test_orders_are_read_as_they_were_written() -> None:
    orders = SandboxOrders(SandboxMode.STRICT, {"a": SandboxMode.OFF, "outer/in-ner_1": SandboxMode.ON})
    assert SandboxOrders.parse(str(orders)) == orders
    assert orders.mode_of("a") is SandboxMode.OFF
    assert orders.mode_of("inner") is SandboxMode.STRICT
    assert SandboxOrders.parse("on") == SandboxOrders()
    for nonsense in ("", "maybe", "on,a", "on,a=b"):
        with pytest.raises(ValueError, match="not a valid SandboxMode"):
            SandboxOrders.parse(nonsense)


@pytest.mark.parametrize("machine", list(SandboxMode))
@pytest.mark.parametrize("own", [None, *SandboxMode])
def test_who_only_passes_orders_on_sees_whether_anybody_is_sandboxed(
    machine: SandboxMode, own: SandboxMode | None
) -> None:
    """Then the zygote is executed so that one of them can be strict, whatever the others are."""
    tap = TapOrder("net0", 1500, "10.0.0.2/24", None)
    orders = SandboxOrders(machine, {} if own is None else {"outer/inner": own}, {"guest": tap})
    wanted = machine is not SandboxMode.OFF or own in (SandboxMode.ON, SandboxMode.STRICT)
    assert orders.confine_somebody == confines_somebody(str(orders)) == wanted


def test_what_the_walls_cost_is_a_difference_of_pairs() -> None:
    """Their processor time is there, or they were not put up. How much is a benchmark's business."""
    assert in_a_child(lambda: cost.measure(5)["processor_time_us_p50"] > 100) is True


def test_every_profile_has_a_filter_that_the_kernel_takes() -> None:
    for profile in Profile:
        reader, writer = os.pipe()

        def act(profile: Profile = profile, writer: int = writer) -> object:
            readable = Readable.find()
            missing = apply.enter(profile, readable, [writer], limits.Grant(0, 1, 0))
            os.write(writer, json.dumps(sorted(missing)).encode())
            os._exit(0)

        if (pid := os.fork()) == 0:
            act()
        os.close(writer)
        with open(reader, "rb") as pipe:
            missing = json.loads(pipe.read())
        os.waitpid(pid, 0)
        assert "seccomp" not in missing
