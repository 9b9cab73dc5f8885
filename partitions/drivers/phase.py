"""The life of a driver partition, as its stack sees it: `partitions.drivers.partition` draws it."""

import enum


class Phase(enum.StrEnum):
    STARTING = "starting"
    SERVING = "serving"
    RESTING = "restarting"
    ENDED = "ended"
    FAILED = "failed"
