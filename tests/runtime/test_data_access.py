"""Who sees a guest's data, and how much code is trusted with it: deduced from what /proc shows."""

import socket
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.measure.data_access import View, deduce, survey
from runtime.measure.trusted_code import CodeBytes, ProcessCode, added_in_turn, added_up, mapped_code

IMAGE = Path("/disk.img")


def view(
    slots: set[int] | None = None, sockets: set[int] | None = None, file: bool = False, held: str = "slot-1"
) -> View:
    """The console, socket 1, is everybody's; the platform, which nobody looks at, has its other end."""
    return View(
        frozenset(slots or ()),
        frozenset({held}),
        frozenset({1, *(sockets or ())}),
        frozenset({IMAGE} if file else ()),
    )


# Sockets 10+n are hypercall sockets, whose other ends the hypervisor has: 20+n. 90 and 91 are joined.
HYPERVISOR = view(sockets={20, 21, 22, 23})
PEERS = {10: 20, 20: 10, 11: 21, 21: 11, 12: 22, 22: 12, 13: 23, 23: 13, 90: 91, 91: 90, 1: 2, 2: 1}
GUEST = view({7}, {10})
MACHINES: Mapping[str, Mapping[str, View]] = {
    "microkernelized": {"root": view({5, 7}, {11}, file=True), "guest": GUEST},
    "disaggregated": {"root": view({5, 6}, {11}), "disk0": view({6, 7}, {12}, file=True), "guest": GUEST},
    "hosted": {
        "root": view({5, 6}, {11}),
        "disk0": view({6}, {12, 90}, file=True),
        "guest.vmm": view({7, 8}, {13, 91}),
        "guest": GUEST,
    },
    "microkernel": {
        "root": view({5, 6}, {11}),
        "disk0": view({6}, {12, 91}, file=True),
        "guest": view({7}, {10, 90}),
    },
}


@pytest.mark.parametrize(
    ("architecture", "seers"),
    [
        ("microkernelized", {"root": ("maps guest pages", "has the backing file")}),
        ("disaggregated", {"disk0": ("maps guest pages", "has the backing file")}),
        (
            "hosted",
            {
                "guest.vmm": ("maps guest pages",),
                "disk0": ("has the backing file", "a socket joins it to guest.vmm"),
            },
        ),
        ("microkernel", {"disk0": ("has the backing file", "a socket joins it to guest")}),
    ],
)
def test_data_is_followed_from_the_guest_over_pages_and_sockets(
    architecture: str, seers: dict[str, tuple[str, ...]]
) -> None:
    """Not to the root, whose pages only a driver shares; nor to the hypervisor, whose sockets carry calls."""
    views = {**MACHINES[architecture], "hypervisor": HYPERVISOR}
    found = deduce(views, ["guest"], [IMAGE], PEERS)
    assert found.seen_by == seers
    assert found.could_map == ("hypervisor",)
    assert found.is_complete
    # Without the sockets the one in between is still found by its pages, and it is said that the rest is not known.
    blind = deduce(views, ["guest"], [IMAGE], None)
    assert set(blind.seen_by) == set(seers)
    assert not blind.is_complete


def test_two_looks_together_show_what_either_shows() -> None:
    early = deduce({"guest": GUEST, "hypervisor": HYPERVISOR}, ["guest"], [IMAGE], PEERS)
    late = deduce({**MACHINES["hosted"], "hypervisor": view({7})}, ["guest"], [IMAGE], PEERS, hidden=["root"])
    for both in (early.with_more(late), late.with_more(early)):
        assert dict(both.seen_by) == dict(late.seen_by)
        assert both.could_map == ()  # by now the hypervisor has mapped them
        assert both.hidden == ("root",)


def test_a_hypervisor_that_maps_guest_pages_sees_them() -> None:
    found = deduce({"hypervisor": view({7}, file=True), "guest": GUEST}, ["guest"], [IMAGE], PEERS)
    assert found.seen_by == {"hypervisor": ("maps guest pages", "has the backing file")}
    assert found.could_map == ()


def test_a_process_that_may_not_be_looked_into_makes_the_answer_incomplete() -> None:
    assert not deduce({"guest": GUEST}, ["guest"], [IMAGE], PEERS, hidden=["root"]).is_complete


def test_who_is_at_the_other_end_of_a_socket_is_found_in_living_processes() -> None:
    """A guest with one end, a server with the other: two processes of ours that do nothing."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        ends = {"guest": ours, "server": theirs}
        sleepers = {
            name: subprocess.Popen(["sleep", "60"], pass_fds=[end.fileno()]) for name, end in ends.items()
        }
        try:
            found = survey({name: each.pid for name, each in sleepers.items()}, ["guest"], [])
        finally:
            for each in sleepers.values():
                each.kill()
                each.wait()
    assert found.seen_by == {"server": ("a socket joins it to guest",)}
    assert found.is_complete
    gone = survey({name: each.pid for name, each in sleepers.items()}, ["guest"], [])
    assert (gone.seen_by, gone.hidden) == ({}, ()), "who has ended hides nothing"


# -- trusted code -------------------------------------------------------------------------------------------

FILES = st.dictionaries(
    st.sampled_from([f"/ours/{name}" for name in "abc"] + [f"/lib/{name}" for name in "xyz"]), st.just(0)
)


@given(st.lists(st.tuples(FILES, FILES), max_size=5))
def test_a_file_counts_once_in_however_many_processes_it_is(
    drawn: list[tuple[dict[str, int], dict[str, int]]],
) -> None:
    size = {
        file: 100 + number
        for number, file in enumerate(sorted({f for pair in drawn for part in pair for f in part}))
    }
    processes = [
        ProcessCode({file: size[file] for file in sources}, {file: size[file] for file in mapped})
        for sources, mapped in drawn
    ]
    total = added_up(processes, ("/ours/",))
    assert total.total == sum(size.values())
    assert total.ours == sum(bytes_ for file, bytes_ in size.items() if file.startswith("/ours/"))
    steps = added_in_turn(processes, ("/ours/",))
    assert CodeBytes(sum(each.ours for each in steps), sum(each.others for each in steps)) == total
    assert all(each.ours >= 0 and each.others >= 0 for each in steps)


def test_what_is_mapped_here_is_counted_by_file_and_sources_by_their_text(tmp_path: Path) -> None:
    import os

    from bus.native import _core

    mapped = mapped_code(os.getpid())
    core = str(Path(str(_core.__file__)).resolve())
    assert mapped[core] >= 4096
    assert not [file for file in mapped if not file.startswith("/")]
    source = tmp_path / "one.py"
    source.write_text("x = 1\n")
    code = ProcessCode.of([str(source), core, str(tmp_path / "gone.py")], mapped)
    assert code.sources == {str(source): 6}
    assert added_up([code]).ours >= mapped[core]
