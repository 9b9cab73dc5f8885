"""What the zygote imports before it forks, so that no partition pays for it again.

A program that is not among these still runs: its partition imports it after the fork.
"""

import importlib
from typing import Final

_MODULES: Final = (
    "hashlib",
    "trio",
    "partitions.drivers.process",
    "partitions.parent",
    "partitions.storage.disk",
    "partitions.guests.copy",
    "partitions.guests.idle",
    "partitions.guests.parent",
    "partitions.guests.verified",
)


def preload() -> None:
    for module in _MODULES:
        importlib.import_module(module)
