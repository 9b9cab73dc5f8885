"""A partition's program for tests of the broker: breaks whatever rule of the hypercall socket it can.

args: seed; calls: how many. It takes all that it can get at the end, and then says that it is done.
"""

import os
import random
import socket
from collections import Counter
from typing import Any, Final

from partitions.guests.hostile_calls import hostile_call
from runtime import codec
from runtime.abi import HvStatus, HypercallCode, HypercallError
from runtime.hypercalls.caller import HypercallPort

TO_ROOT: Final = 1
SINT: Final = 2
_FDS_MAX: Final = 40  # more than any call takes


def main(port: HypercallPort) -> int:
    birth = port.get_birth()
    args: Any = birth.args
    rng = random.Random(int(args["seed"]))
    outcomes: Counter[str] = Counter()
    for _ in range(int(args["calls"])):
        dice = rng.random()
        if dice < 0.05:
            _raw(port, rng)
        elif dice < 0.08:
            _descriptors(port, rng)
        else:
            outcomes[_call(port, rng)] += 1
    _greed(port)
    assert outcomes["SUCCESS"], outcomes
    assert len(outcomes) > 5, outcomes
    _say(port, b"done")
    return 0


def _call(port: HypercallPort, rng: random.Random) -> str:
    code, args = hostile_call(rng)
    if args.get("connection") == TO_ROOT and code is HypercallCode.DISCONNECT_PORT:
        return "kept"  # the test wants to hear of the end
    try:
        codec.close_all(port.call(code, **args).fds)
    except HypercallError as error:
        return error.status.name
    except codec.EncodeError:
        return "not sent"
    return "SUCCESS"


def _raw(port: HypercallPort, rng: random.Random) -> None:
    """Bytes that are no call. Each gets a reply all the same."""
    sock: socket.socket = port._socket
    good = codec.encode([int(rng.choice(list(HypercallCode))), {"partition": 1}])
    cut = good[: rng.randrange(1, len(good) + 1)]
    kinds = (
        rng.randbytes(rng.randrange(1, 200)),
        cut,
        good + b"\\0",
        b"\\x91" * 60,
        b"\\xdd\\xff\\xff\\xff\\xff",
    )
    codec.send_packet(sock, rng.choice(kinds))
    reply = codec.receive_message(sock)
    assert reply is not None
    codec.close_all(reply[1])


def _descriptors(port: HypercallPort, rng: random.Random) -> None:
    """Descriptors that nobody asked for, up to many at once."""
    sock: socket.socket = port._socket
    fd = os.open(os.devnull, os.O_RDONLY)
    fds = [fd] * rng.choice((1, 15, 16, 17, _FDS_MAX))
    try:
        codec.send_packet(sock, codec.encode([int(HypercallCode.GET_PARTITION_ID), {}]), fds)
    finally:
        os.close(fd)
    reply = codec.receive_message(sock)
    assert reply is not None
    message: Any = reply[0]
    assert message[0] == HvStatus.INVALID_HYPERCALL_INPUT


def _greed(port: HypercallPort) -> None:
    """Slots until nothing is left, then ports, which are smaller."""
    for gpfn, pages in ((0x10_0000, 64), (0x20_0000, 1)):
        try:
            while True:
                codec.close_all([port.map_gpa_pages(gpfn, pages).fd])
                gpfn += pages
        except HypercallError as error:
            if error.status not in (HvStatus.INSUFFICIENT_MEMORY, HvStatus.NO_RESOURCES):
                raise


def _say(port: HypercallPort, payload: bytes) -> None:
    while True:
        try:
            return port.post_message(TO_ROOT, 1, payload)
        except HypercallError as error:
            if error.status != HvStatus.INSUFFICIENT_BUFFERS:
                raise
