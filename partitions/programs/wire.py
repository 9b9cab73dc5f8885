"""What a guest and its runner say to each other: JSON in SEQPACKET packets.

guest -> runner    {argv, environment} + [the program's socket, what becomes its descriptors 0, 1 and 2]
on the program's socket:
runner -> guest    {pid} or {error}
runner -> guest    {code}: it has ended, by its exit code; less than 0: by that signal
guest -> runner    the end of its stream: kill it, with all that it has started in its own group
"""

import json
import socket
from collections.abc import Mapping
from typing import Any, Final

ORDER_BYTES_MAX: Final = 64 << 10
ORDER_DESCRIPTORS: Final = 4
ANSWER_BYTES_MAX: Final = 4096


class MalformedOrder(ValueError):
    """It is none."""


def encode(values: Mapping[str, Any]) -> bytes:
    return json.dumps(values).encode()


def decode_order(data: bytes) -> tuple[list[str], dict[str, str]]:
    """(argv, environment). MalformedOrder."""
    try:
        order = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise MalformedOrder(f"not JSON: {error}") from error
    match order:
        case {"argv": [str(), *_] as argv, "environment": dict() as environment}:
            words = [*argv, *environment, *environment.values()]
            if all(isinstance(word, str) and "\0" not in word for word in words) and argv[0]:
                return argv, environment
    raise MalformedOrder(f"want argv and environment, of texts: {data[:80]!r}")


def decode_answer(data: bytes) -> dict[str, Any]:
    """MalformedOrder."""
    try:
        answer = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise MalformedOrder(f"not JSON: {error}") from error
    if not isinstance(answer, dict):
        raise MalformedOrder(f"{data[:80]!r}")
    return answer


def receive(sock: socket.socket) -> tuple[bytes, list[int]]:
    """A packet and its descriptors, the caller's own; b"" at the end of the stream."""
    data, fds, flags, _ = socket.recv_fds(sock, ORDER_BYTES_MAX, ORDER_DESCRIPTORS, socket.MSG_CMSG_CLOEXEC)
    if flags & (socket.MSG_CTRUNC | socket.MSG_TRUNC):
        return b"?", fds
    return data, fds
