"""What is done about a real device that fails: the words of the config."""

import enum


class OnError(enum.StrEnum):
    REPORT = "report"  # the guest gets the error, and a record is made
    RETRY = "retry"  # first the request is tried again, a few times
    DEGRADE = "degrade"  # after too many, a disk is for reading alone and a network's link is down
    REMOVE = "remove"  # after too many, it is taken from its guests
