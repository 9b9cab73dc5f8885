"""The root's own sandbox, and the first look at what this host allows to all others."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from partitions.assignment import kept_of
from partitions.outside import open_outside
from partitions.sandbox import apply, probes
from partitions.stack.virtualization_stack import BuildError
from partitions.storage.backends import BackendError
from partitions.storage.backing_files import create_missing
from runtime.config.sandbox import SandboxMode


def put_up(
    machine: Mapping[str, Any],
    devices: Sequence[Mapping[str, Any]],
    say: Callable[..., None],
    *,
    first: bool,
) -> None:
    """Once the devices are known, and before any is opened or a thread is started.

    Args:
        machine, devices: the [machine] table and the [[root.device]] tables.
        say: for the machine's event log, when something is missing.
        first: of the machine's roots: it looks what the host allows to partitions. A successor is in a hurry.

    Raises:
        BuildError: the machine is to be sandboxed strictly, and can't be; or something that is to be created
            for a device can't be.
    """
    mode = SandboxMode(machine.get("sandbox", SandboxMode.OFF))
    if mode is SandboxMode.OFF:
        return
    try:
        if first:
            create_missing(devices)
        open_outside(
            devices if first else kept_of(devices), say, first=first
        )  # what was handed over is in use
        missing = probes.find_missing() if first else {}
        missing |= apply.enter_root(devices, SandboxMode.ON)
    except (BackendError, OSError) as error:
        raise BuildError(str(error)) from error
    if missing and mode is SandboxMode.STRICT:
        raise BuildError(str(apply.SandboxError(missing)))
    if missing and first:
        say("sandbox.limited", missing=missing)
