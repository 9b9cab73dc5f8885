"""The filter of system calls, read as the kernel reads it."""

import errno
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from partitions.sandbox import bpf, rules, seccomp, syscalls
from partitions.sandbox.profiles import Profile, profile_of
from partitions.sandbox.syscalls import AUDIT_ARCH_X86_64, NUMBERS

I386 = 0x4000_0003
X32 = 0x4000_0000
PID = 4711


def judge(profile: Profile, name: str | int, *arguments: int, processor: int = AUDIT_ARCH_X86_64) -> int:
    number = name if isinstance(name, int) else NUMBERS[name]
    return bpf.run(seccomp.program_of(profile), processor, number, arguments, PID)


@given(
    st.dictionaries(st.integers(0, 449), st.integers(0, 2**32 - 1), max_size=150),
    st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=40),
)
def test_a_decision_is_that_of_the_table_for_any_table_and_any_number(
    table: dict[int, int], asked: list[int]
) -> None:
    unlisted, beyond, foreign = 1, 2, 3
    program = bpf.decide(
        AUDIT_ARCH_X86_64,
        {number: bpf.give(action) for number, action in table.items()},
        bpf.give(unlisted),
        bpf.give(beyond),
        450,
        bpf.give(foreign),
    )
    for number in {*asked, *table, *(n + 1 for n in table), *(n - 1 for n in table if n)}:
        expected = table.get(number, unlisted if number < 450 else beyond)
        assert bpf.run(program, AUDIT_ARCH_X86_64, number, (), PID) == expected
        assert bpf.run(program, I386, number, (), PID) == foreign


@given(
    st.integers(0, 5),
    st.lists(st.integers(0, 2**32 - 1), max_size=8),
    st.lists(st.integers(0, 2**64 - 1), min_size=6, max_size=6),
)
def test_an_argument_counts_with_its_low_word(argument: int, values: list[int], arguments: list[int]) -> None:
    """A caller that sets upper bits, which the kernel would not look at, gets no further by that."""
    program = bpf.if_argument_is(argument, values, 1, 0)
    for tried in (
        arguments,
        [*arguments[:argument], (values or [0])[0] | 1 << 40, *arguments[argument + 1 :]],
    ):
        expected = tried[argument] & 0xFFFF_FFFF in values
        assert bpf.run(program, AUDIT_ARCH_X86_64, 0, tried, PID) == expected


@pytest.mark.parametrize("profile", Profile)
def test_each_call_is_of_one_kind(profile: Profile) -> None:
    allowed, hostile = rules.allowed(profile), rules.hostile()
    named = [*allowed, *hostile, *rules.conditional(profile)]
    assert len(named) == len(set(named))
    for name in allowed:
        assert judge(profile, name) == bpf.ALLOW
    for name in hostile:
        assert judge(profile, name) == bpf.KILL_PROCESS


@pytest.mark.parametrize("profile", Profile)
def test_what_nobody_named_is_refused_and_what_is_newer_does_not_exist(profile: Profile) -> None:
    known = set(NUMBERS.values())
    unnamed = [number for number in range(syscalls.UNKNOWN_FROM) if number not in known]
    assert {judge(profile, number) for number in unnamed} == {bpf.ERRNO | errno.EPERM}
    assert judge(profile, syscalls.UNKNOWN_FROM) == judge(profile, X32) == bpf.ERRNO | errno.ENOSYS
    assert judge(profile, "read", processor=I386) == bpf.KILL_PROCESS


PARTITIONS = [profile for profile in Profile if profile is not Profile.PROGRAMS]


@pytest.mark.parametrize("profile", PARTITIONS)
def test_only_threads_are_made_and_only_oneself_is_signalled(profile: Profile) -> None:
    thread, new_user, new_network = 0x3D0F00, 0x1000_0000, 0x4000_0000  # as the C library makes one
    assert judge(profile, "clone", thread) == bpf.ALLOW
    refused = bpf.ERRNO | errno.EPERM
    for flags in (17, 0x4111, thread | new_user, thread | new_network, thread | 0x2_0000, 0):
        assert judge(profile, "clone", flags) == refused
    assert judge(profile, "clone3") == bpf.ERRNO | errno.ENOSYS
    for name in ("kill", "tgkill"):
        assert judge(profile, name, PID, 9) == bpf.ALLOW
        for other in (0, 1, PID + 1, -1 & 0xFFFF_FFFF, -PID & 0xFFFF_FFFF):
            assert judge(profile, name, other, 9) == refused


def test_only_the_root_has_sockets_with_names() -> None:
    refused = bpf.ERRNO | errno.EPERM
    unix, packet, stream, datagram = 1, 17, 1, 2
    for profile in (Profile.GUEST, Profile.DRIVER):
        for name in ("socket", "connect", "bind", "listen"):
            assert judge(profile, name, unix, stream) == refused
    assert judge(Profile.ROOT, "socket", unix, stream) == bpf.ALLOW
    assert judge(Profile.ROOT, "socket", packet, stream) == refused
    for name in ("socket", "connect", "bind"):
        assert judge(Profile.PROGRAMS, name, unix, stream) == (refused if name == "socket" else bpf.ALLOW)
    for profile in Profile:
        assert judge(profile, "socketpair", unix, stream) == bpf.ALLOW
        assert (
            judge(profile, "socketpair", unix, datagram) == refused
        )  # could be sent to the management socket


@pytest.mark.parametrize("profile", [Profile.GUEST, Profile.DRIVER])
def test_nothing_is_opened_for_writing(profile: Profile) -> None:
    """Not by path, and not once more what was handed over for reading: that has a path in /proc."""
    for flags in (os.O_WRONLY, os.O_RDWR, os.O_CREAT, os.O_TRUNC, os.O_TMPFILE | os.O_RDWR):
        assert judge(profile, "openat", 0, 0, flags) == bpf.ERRNO | errno.EPERM
        assert judge(profile, "open", 0, flags) == bpf.ERRNO | errno.EPERM
    assert judge(profile, "openat", 0, 0, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECTORY) == bpf.ALLOW
    assert judge(Profile.ROOT, "openat", 0, 0, os.O_RDWR) == bpf.ALLOW


def test_programs_start_programs_in_no_new_namespace_and_have_sockets_of_their_own_network_alone() -> None:
    refused, new_user, inet, netlink, packet = bpf.ERRNO | errno.EPERM, 0x1000_0000, 2, 16, 17
    for flags in (17, 0x4111):
        assert judge(Profile.PROGRAMS, "clone", flags) == bpf.ALLOW
        assert judge(Profile.PROGRAMS, "clone", flags | new_user) == refused
    assert judge(Profile.PROGRAMS, "execve") == bpf.ALLOW
    for family, action in ((inet, bpf.ALLOW), (netlink, bpf.ALLOW), (packet, refused)):
        assert judge(Profile.PROGRAMS, "socket", family, 1) == action
    for profile in PARTITIONS:
        assert judge(profile, "execve") == judge(profile, "fork") == refused


def test_who_claims_to_be_a_driver_gains_ioctls_and_nothing_else() -> None:
    """A guest's parent names its module. What a driver may beyond a guest is said here, so that it stays so."""
    assert profile_of("partitions.drivers.process") is profile_of("partitions.drivers.vmm") is Profile.DRIVER
    assert profile_of("somebody.elses") is Profile.GUEST
    assert rules.allowed(Profile.DRIVER) == rules.allowed(Profile.GUEST)
    driver, guest = rules.conditional(Profile.DRIVER), rules.conditional(Profile.GUEST)
    assert {name for name in driver if driver[name] != guest.get(name)} == {"ioctl"}


def test_the_lists_in_the_docs_are_those_of_the_filter() -> None:
    page = (Path(__file__).parent.parent.parent / "docs" / "sandbox.md").read_text()

    def block(marker: str) -> list[str]:
        return page.split(f"<!-- {marker} -->\n```text\n")[1].split("```")[0].split()

    assert block("allowed") == rules.allowed(Profile.GUEST)
    assert block("allowed") == rules.allowed(Profile.DRIVER)
    assert block("allowed") + block("allowed to the root") == rules.allowed(Profile.ROOT)
    assert block("allowed") + block("allowed to programs") == rules.allowed(Profile.PROGRAMS)
    assert block("deadly") == rules.hostile()
    for name, (condition, _) in rules.conditional(Profile.PROGRAMS).items():
        assert f"| `{name}` | {condition} |" in page
    names = [*rules.conditional(Profile.GUEST), *rules.conditional(Profile.ROOT)]
    for name in dict.fromkeys(names):
        cells = [
            rules.conditional(profile).get(name, ("any" if name in rules.allowed(profile) else "never",))[0]
            for profile in PARTITIONS
        ]
        assert f"| `{name}` | {' | '.join(cells)} |" in page
