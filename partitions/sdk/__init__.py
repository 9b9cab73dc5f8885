"""What a driver is written against: a class for each device class, and what it is given. See docs/drivers.md.

A driver imports this package and nothing else of ours, and names nothing of where it runs.
"""

from partitions.sdk.block import AsyncBlockDriver, BlockDriver
from partitions.sdk.context import DriverContext
from partitions.sdk.custom import AsyncCustomDriver, CustomDriver
from partitions.storage.backends import BackendError

__all__ = [
    "AsyncBlockDriver",
    "AsyncCustomDriver",
    "BackendError",
    "BlockDriver",
    "CustomDriver",
    "DriverContext",
]
