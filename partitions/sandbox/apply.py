"""All walls, in the one order in which they go up: each needs something that the next one takes away."""

import os
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Final

from partitions.sandbox import (
    capabilities,
    descriptors,
    kernel,
    landlock,
    limits,
    namespaces,
    root_devices,
    seccomp,
)
from partitions.sandbox.profiles import Profile
from partitions.sandbox.readable import Readable, of_this_interpreter
from runtime.config.sandbox import SandboxMode

_PR_SET_DUMPABLE: Final = 4
_PR_SET_NO_NEW_PRIVS: Final = 38
_USER_LIMITS_SINCE: Final = (5, 14)  # from here on a user namespace counts its own processes

Missing = dict[str, str]  # what this host does not allow, and why


class SandboxError(Exception):
    """`sandbox = "strict"`, and this host allows less. One line for the user."""

    def __init__(self, missing: Missing) -> None:
        super().__init__(missing)
        self.missing = missing

    def __str__(self) -> str:
        listed = ", ".join(f"{what} ({why})" for what, why in self.missing.items())
        return (
            f'sandbox = "strict", but this host lacks {listed}: see partvisor doctor, or set sandbox = "on"'
        )


class _Walls:
    """What was put up, and what could not be."""

    def __init__(self) -> None:
        self.missing: Missing = {}

    def put_up(self, name: str, build: Callable[[], object]) -> bool:
        try:
            build()
        except OSError as error:
            self.missing[name] = os.strerror(error.errno) if error.errno else str(error.args[-1])
            return False
        return True

    def judge(self, mode: SandboxMode) -> Missing:
        if self.missing and mode is SandboxMode.STRICT:
            raise SandboxError(self.missing)
        return self.missing


def prepare() -> None:
    """Before the fork, so that no partition pays for it."""
    for profile in Profile:
        seccomp.prepare(profile)
    capabilities.effective()
    of_this_interpreter()


def enter(
    profile: Profile,
    readable: Readable,
    kept: Collection[int],
    grant: limits.Grant,
    mode: SandboxMode = SandboxMode.ON,
    inside: Callable[[], Collection[int]] = tuple,
) -> Missing:
    """Put the walls of a guest or a driver around this process, which has one thread. Returns what could not be.

    Args:
        kept: its descriptors, of which the last is the console; all others are closed.
        inside: called in its namespaces, with all capabilities there; the descriptors that it returns are kept too.

    Raises:
        SandboxError: `mode` is strict and something is missing. The process must end now: some walls stand.
    """
    walls = _Walls()
    kept = list(kept)
    descriptors.replace_standard(kept[-1])
    walls.put_up("no_new_privs", _refuse_new_privileges)
    may_be_hidden = capabilities.has(
        capabilities.CAP_SYS_PTRACE
    )  # afterwards it has all, in its own namespace
    walls.missing |= namespaces.enter(namespaces.PARTITION)
    kept += inside()
    counts = namespaces.NAMES[namespaces.NEW_USER] not in walls.missing and _kernel() >= _USER_LIMITS_SINCE
    walls.put_up("limits", lambda: limits.impose(grant, count_threads=counts))
    walls.put_up("no capabilities", lambda: capabilities.keep_only(frozenset()))
    walls.put_up("dumpable off", lambda: _hide_memory(may_be_hidden))
    walls.put_up("Landlock", lambda: landlock.restrict(readable))
    descriptors.keep_only(kept)
    walls.put_up("seccomp", lambda: seccomp.install(profile, os.getpid()))
    return walls.judge(mode)


def enter_root(devices: Sequence[Mapping[str, Any]], mode: SandboxMode) -> Missing:
    """The same for the root, once it knows its devices and before it opens them. It has one thread, too.

    Args:
        devices: the [[root.device]] tables.

    Raises:
        SandboxError: as `enter`.
    """
    walls = _Walls()
    kept = root_devices.CAPABILITIES if namespaces.is_of_the_host() else frozenset()
    may_be_hidden = capabilities.has(capabilities.CAP_SYS_PTRACE)
    walls.put_up("no_new_privs", _refuse_new_privileges)
    namespaces.enter(
        namespaces.ROOT
    )  # where it may: an ordinary user's has the right only in a user namespace
    walls.put_up("limits", limits.impose_on_root)
    walls.put_up("no capabilities", lambda: capabilities.keep_only(kept))
    walls.put_up("dumpable off", lambda: _hide_memory(may_be_hidden))
    walls.put_up("Landlock", lambda: _landlock_root(devices))
    walls.put_up("seccomp", lambda: seccomp.install(Profile.ROOT, os.getpid()))
    return walls.judge(mode)


def _refuse_new_privileges() -> None:
    kernel.prctl("no_new_privs", _PR_SET_NO_NEW_PRIVS, 1)


def _hide_memory(may_be_hidden: bool) -> None:
    """No core image, and no look into our memory for other processes of the same user.

    The machine's own user still shall look into /proc with `partvisor`: so not where that would be closed to everybody
    but real root. See `runtime.machine.user_namespace`.
    """
    if not may_be_hidden:
        raise OSError(0, "its own user could not look into /proc any more")
    kernel.prctl("dumpable", _PR_SET_DUMPABLE, 0)


def _landlock_root(devices: Sequence[Mapping[str, Any]]) -> None:
    readable = of_this_interpreter()
    try:
        landlock.restrict(readable, root_devices.paths_of(devices), network=True)
    finally:
        readable.close()


def _kernel() -> tuple[int, ...]:
    return tuple(int(word) for word in re.findall(r"\d+", os.uname().release)[:2])
