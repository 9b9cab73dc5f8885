"""Serial lines that lead to a console: `partvisor console NAME` is at the other end, by way of the platform.

Each is a pair of sockets. One end is the serial line's driver's, or that of an emulated port; the other is handed to
the platform, which logs what comes, and lets one terminal at a time attach.
"""

import os

from partitions import platform_ends


def open_pair(line: str) -> int:
    """Our end of a new one, which does not block. `line`: "serial:DEVICE" or "uart:PARTITION"."""
    ours = platform_ends.open_pair("console", {"line": line})
    os.set_blocking(ours, False)
    return ours
