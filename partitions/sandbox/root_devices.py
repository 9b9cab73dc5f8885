"""What the root needs of the host for the devices that the config gives it, once all that is to be made is made.

Ptys, listening sockets and TAPs were opened before (`partitions.outside`); so no right over the network is left.
"""

from collections.abc import Iterable, Mapping
from typing import Any, Final

from partitions.sandbox.capabilities import CAP_DAC_OVERRIDE

# Where the machine is real root's: a disk's file may be another user's, and is opened again for each driver process.
CAPABILITIES: Final = frozenset({CAP_DAC_OVERRIDE})


def paths_of(devices: Iterable[Mapping[str, Any]]) -> list[str]:
    """Files that it may open for reading and writing."""
    keys = ("path", "base")
    return [path for device in devices for key in keys if isinstance(path := device.get(key), str)]
