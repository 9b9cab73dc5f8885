"""Resource limits of a partition's process."""

import resource
from dataclasses import dataclass
from typing import Final

INTERPRETER_BYTES: Final = 256 << 20  # private memory that Python, its modules and a few threads may take
STACK_BYTES: Final = 8 << 20  # of each thread
FILES_MAX: Final = 4096  # open at once: slots, doorbells and lines of a partition with all that it may have
THREADS_MAX: Final = (
    1024  # counted in the partition's own user namespace; not where the machine is real root's
)
PAGE_BYTES: Final = 4096


@dataclass(frozen=True, slots=True)
class Grant:
    """What the hypervisor says of the partition, whoever configured it."""

    pages: int  # deposited for it
    vps: int
    files: int  # descriptors that it is born with

    @property
    def private_bytes(self) -> int:
        """Guest pages are shared memory, which this does not count: as much again for the program's own data."""
        return INTERPRETER_BYTES + self.pages * PAGE_BYTES + self.vps * STACK_BYTES


def impose(grant: Grant, *, count_threads: bool) -> None:
    """For good: soft and hard alike."""
    _lower(resource.RLIMIT_CORE, 0)
    _lower(resource.RLIMIT_MSGQUEUE, 0)
    _lower(resource.RLIMIT_STACK, STACK_BYTES)
    _lower(resource.RLIMIT_NOFILE, FILES_MAX)
    _lower(resource.RLIMIT_DATA, grant.private_bytes)
    if not grant.files:  # otherwise one may be there to be written, and how much is its owner's business
        _lower(resource.RLIMIT_FSIZE, grant.private_bytes)
    if count_threads:
        _lower(resource.RLIMIT_NPROC, THREADS_MAX)


def impose_on_root() -> None:
    """Its memory is the machine's; only its image shall not be left on a disk."""
    _lower(resource.RLIMIT_CORE, 0)


def _lower(what: int, limit: int) -> None:
    _, hard = resource.getrlimit(what)
    if hard != resource.RLIM_INFINITY:
        limit = min(limit, hard)
    resource.setrlimit(what, (limit, limit))
