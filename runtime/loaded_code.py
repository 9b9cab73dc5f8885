"""Which files of code this process has loaded, told at its end to whoever asked: `partvisor compare` adds them up.

From outside only what is mapped shows: programs and shared objects. Python's sources leave no trace in /proc, so each
process of a machine says itself what it imported, if the variable is set. Only then: it is of no use otherwise. At the
end, because programs import while they run.
"""

import os
import sys
from collections import defaultdict
from collections.abc import Callable
from typing import Final

ASK_VARIABLE: Final = "PARTVISOR_REPORT_CODE"  # set: report
EVENT: Final = "guest.loaded_code"
FILES_PER_RECORD: Final = 400  # a record of the console has room for 64 KiB, an event for half of that


def report_if_asked(emit: Callable[..., None]) -> None:
    """One or more records EVENT(pid, folders={folder: [names]})."""
    if ASK_VARIABLE not in os.environ:
        return
    files = loaded_files()
    for start in range(0, len(files), FILES_PER_RECORD):
        folders: dict[str, list[str]] = defaultdict(list)
        for file in files[start : start + FILES_PER_RECORD]:
            folder, _, name = file.rpartition("/")
            folders[folder].append(name)
        emit(EVENT, pid=os.getpid(), folders=dict(folders))


def loaded_files() -> list[str]:
    """Sources and extension modules of every imported module. What is built into the interpreter has no file."""
    found = {
        file
        for module in list(sys.modules.values())
        if isinstance(file := getattr(module, "__file__", None), str)
    }
    return sorted(found)
