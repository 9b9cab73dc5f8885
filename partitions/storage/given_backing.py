"""A backing file that somebody else opened: the root may not open what its config did not name at its start."""

import fcntl

from partitions.machine_plan import DevicePlan
from partitions.storage.backends import BackendOpenError


def claim_given(descriptor: int, plan: DevicePlan) -> None:
    """As a disk's own file is claimed: one machine may write it, any number read it.

    BackendOpenError: it is in use. The descriptor stays open, and its holder's.
    """
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if plan.read_only else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except OSError as error:
        raise BackendOpenError(
            error.errno or 0, f"{plan.path}: in use by another machine: stop that one first (partvisor list)"
        ) from error
