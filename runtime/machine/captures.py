"""Captures of a machine's networks: clients come by the socket `capture` in its folder, and are handed to the root.

What a client says first is read here, and its very socket goes on; see runtime.machine.capture_wire.
"""

import socket
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final

import msgspec
import trio

from runtime.machine.capture_wire import HELLO_BYTES_MAX, SNAP_BYTES_MAX
from runtime.machine.management_wire import ManagementStatus
from runtime.machine.private_socket import accept_each, listening
from runtime.machine.questions import RequestRefused
from runtime.machine.rundir import MachineFolder

HELLO_SECONDS_MAX: Final = 5.0
CLIENTS_AT_ONCE_MAX: Final = 16  # that have not said yet what they want

Forward = Callable[[str, Mapping[str, object], Sequence[int]], Awaitable[None]]  # a verb, values, descriptors


class CaptureHello(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    port: str | None = None
    snap_bytes: int = SNAP_BYTES_MAX


async def serve_captures(
    folder: MachineFolder, forward: Forward, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    """Until cancelled. `forward` raises OSError or RequestRefused: the root is not there."""
    limiter = trio.CapacityLimiter(CLIENTS_AT_ONCE_MAX)

    async def greet(client: trio.socket.SocketType) -> None:
        async with limiter:
            with client, trio.move_on_after(HELLO_SECONDS_MAX):
                await _hand_over(client, forward)

    with listening(folder.capture_path, CLIENTS_AT_ONCE_MAX, socket.SOCK_SEQPACKET) as listener:
        async with trio.open_nursery() as nursery:

            async def take(client: trio.socket.SocketType) -> None:
                nursery.start_soon(greet, client)

            task_status.started()
            await accept_each(listener, take)


async def _hand_over(client: trio.socket.SocketType, forward: Forward) -> None:
    try:
        data = await client.recv(HELLO_BYTES_MAX)
        if not data:
            return
        hello: dict[str, Any] = msgspec.to_builtins(msgspec.json.decode(data, type=CaptureHello))
        await forward("capture", hello, [client.fileno()])
        return
    except (OSError, RequestRefused) as error:
        status, problem = ManagementStatus.REFUSED, str(error)
    except (ValueError, RecursionError) as error:
        status, problem = ManagementStatus.BAD_REQUEST, f"not {{name, port, snap_bytes}}: {error}"
    answer = {"ok": False, "status": status, "message": problem}
    try:
        await client.send(msgspec.json.encode(answer))
    except OSError:
        return
