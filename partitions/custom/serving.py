"""A driver, as the servers of its channels use it: one at a time, and what it returns is looked at.

A driver's replies are checked like a guest's requests, but what is wrong with them is the driver's fault: its worker
fails, and is started again (partitions.stack.served_channel).
"""

import errno
import threading
from collections.abc import Sequence
from typing import Final

from partitions.custom.wire import REQUEST_BYTES_MAX, encode_error
from partitions.sdk.custom import CustomDriver
from partitions.storage.backends import BackendError


class DriverMisbehaved(Exception):
    """A driver returned what is no answer. The text says what."""


def lock_of(opened: object, driver: object, lock: threading.Lock) -> "threading.Lock | None":
    """For calls of `opened`: the driver's; None where it is one guest's alone, and so one thread's."""
    return lock if opened is driver else None


def check_reply(reply: object) -> bytes:
    if type(reply) is not bytes:
        raise DriverMisbehaved(f"a reply is {type(reply).__name__}, not bytes")
    return reply


def too_long(reply_bytes: int) -> BackendError:
    """What a guest gets in the place of such a reply."""
    return BackendError(errno.EMSGSIZE, f"the reply has {reply_bytes} bytes, and there is no room for it")


def error_of(error: BackendError) -> bytes:
    return encode_error(error.errno, str(error.args[1]))


def serve_batch(driver: CustomDriver, requests: Sequence[bytes]) -> Sequence[bytes | BackendError]:
    """As many as there are requests. DriverMisbehaved; whatever the driver raises but BackendError."""
    try:
        replies: object = driver.serve(requests)
    except BackendError as error:
        return [error] * len(requests)
    if isinstance(replies, bytes | str) or not isinstance(replies, Sequence):
        raise DriverMisbehaved(f"serve returned {type(replies).__name__}, not a list of replies")
    if len(replies) != len(requests):
        raise DriverMisbehaved(f"serve returned {len(replies)} replies to {len(requests)} requests")
    return [check_reply(reply) for reply in replies]


def is_single(driver: CustomDriver) -> bool:
    """It overrides `answer` alone: nothing is won by collecting requests."""
    return type(driver).serve is CustomDriver.serve


BATCH_MAX: Final = (
    64  # requests that a driver is given at once; and, of an asynchronous one, that are under way
)
assert REQUEST_BYTES_MAX < 1 << 32
