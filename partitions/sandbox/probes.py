"""What this host allows: a process puts up the walls of a guest, says what was missing, and ends.

`python -m partitions.sandbox.probes` prints it as JSON: {"missing": {what: why}}.
"""

import json
import os
import socket
import sys
import time
from typing import Final

from partitions.sandbox import limits
from partitions.sandbox.apply import Missing, enter
from partitions.sandbox.profiles import Profile
from partitions.sandbox.readable import of_this_interpreter

_REPORT_BYTES_MAX: Final = 64 << 10
_GRANT: Final = limits.Grant(pages=0, vps=1, files=0)


def find_missing() -> Missing:
    """By doing it all in a child. Only for a process with one thread, since it forks. Raises OSError."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        pid = os.fork()
        if pid == 0:
            try:
                theirs.send(json.dumps(_probe(theirs.fileno())).encode())
            finally:
                os._exit(0)
        theirs.close()
        report = ours.recv(_REPORT_BYTES_MAX)
        os.waitpid(pid, 0)
    if not report:
        raise OSError(0, "a process that sandboxed itself died of it")
    missing: Missing = json.loads(report)
    return missing


def _probe(descriptor: int) -> Missing:
    missing = enter(Profile.GUEST, of_this_interpreter(), [descriptor], _GRANT)
    time.sleep(0)  # a call that the filter has to allow
    return missing


if __name__ == "__main__":
    try:
        json.dump({"missing": find_missing()}, sys.stdout)
    except OSError as error:
        json.dump({"missing": {"a sandbox": str(error)}}, sys.stdout)
