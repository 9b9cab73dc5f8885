"""How a command ends: the exit codes, and the errors that a user sees as one line."""

import enum
from typing import ClassVar


class ExitCode(enum.IntEnum):
    """What a shell script can branch on. `partvisor --help` lists the same numbers."""

    DONE = 0
    FAILED = 1  # the machine went down, or a check failed
    USAGE = 2  # the command line or the config file is wrong; nothing was started
    NOT_FOUND = 3  # no machine, or no partition, of that name
    NO_ANSWER = 4  # the machine is there and does not answer in time
    INTERRUPTED = 130  # Ctrl-C, as shells count it: 128 + SIGINT


class CommandError(Exception):
    """Something that the user can put right. The text is one line: what is wrong, then what to do."""

    exit_code: ClassVar[ExitCode] = ExitCode.FAILED
