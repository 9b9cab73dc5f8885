"""Attacks on the hypervisor by its own calls, and by bytes that are none."""

import contextlib
import os
import socket
from collections.abc import Callable
from typing import Final

from bus.synic import CHANNEL_MESSAGE, CONTACT_CONNECTION, HYPERVISOR_MESSAGE
from partitions.guests.hostile.scene import Scene
from partitions.guests.hostile.tally import Tally
from partitions.guests.hostile_calls import hostile_call
from partitions.stack.vmbus_ports import driver_port, root_message_port, server_event_port
from partitions.vp.intercept_ports import GUEST_INTERCEPT_CONNECTION, intercept_port
from runtime import codec
from runtime.abi import (
    HvStatus,
    HypercallCode,
    HypercallError,
    MapFlags,
    PartitionProperty,
    PortType,
)

ROOT_ID: Final = 1
_NEIGHBOURS: Final = range(2, 12)
_GREED_PAGES: Final = 256
_GREED_GPFN: Final = 0x10_0000
_FDS_MAX: Final = 40  # more than any call takes
_PRIVILEGES: Final = 2**55 - 1


def forbidden_calls(scene: Scene, tally: Tally) -> None:
    """What a guest's privileges and its place in the tree do not allow; once."""
    call, own = scene.partition.hypercalls, scene.partition.id
    attempts: dict[str, Callable[[], object]] = {
        "create_partition": lambda: call.create_partition(),
        "take_from_root": lambda: call.withdraw(ROOT_ID, 1),
        "delete_root": lambda: call.delete(ROOT_ID),
        "finalize_root": lambda: call.finalize(ROOT_ID),
        "more_privileges": lambda: call.set_property(own, PartitionProperty.PRIVILEGE_FLAGS, _PRIVILEGES),
        "map_roots_pages": lambda: call.map_partition_pages(ROOT_ID, 0, 1, 0x9000),
        "port_in_root": lambda: call.create_port(7, own, PortType.EVENT, 2, partition=ROOT_ID, flag_count=1),
        "foreign_doorbell": lambda: call.claim_port_doorbell(0x2_0001),
        "foreign_connection": lambda: call.post_message(3, CHANNEL_MESSAGE, b""),
        "hypervisors_message": lambda: call.post_message(CONTACT_CONNECTION, HYPERVISOR_MESSAGE, b""),
        "unsealed_sint_0": lambda: call.create_port(8, ROOT_ID, PortType.EVENT, 0, flag_count=1),
    }
    for neighbour in _NEIGHBOURS:
        if neighbour != own:
            attempts |= _on_neighbour(scene, neighbour)
    for name, attempt in attempts.items():
        try:
            attempt()
        except HypercallError as error:
            tally.met(error.status.name)
            tally.evidence = f"{name}: {error.status.name}"
        else:
            tally.made += 1
            tally.breach(f"{name} was allowed")


def _on_neighbour(scene: Scene, other: int) -> dict[str, Callable[[], object]]:
    call, own = scene.partition.hypercalls, scene.partition.id
    return {
        f"finalize_{other}": lambda: call.finalize(other),
        f"end_process_{other}": lambda: call.end_process(other),
        f"suspend_{other}": lambda: call.suspend(other),
        f"read_memory_{other}": lambda: call.read_gpa(other, 0x100_0000, 8),
        f"write_memory_{other}": lambda: call.write_gpa(other, 0x100_0000, b"hostile!"),
        f"map_memory_{other}": lambda: call.map_partition_pages(other, 0x1000, 1, 0x9000),
        f"map_into_{other}": lambda: call.map_gpa_pages(0x9000, 1, partition=other),
        f"connect_to_{other}": lambda: call.connect_port(0x9000, other, 1),
        f"port_in_{other}": lambda: call.create_port(9, own, PortType.MESSAGE, 2, partition=other),
        f"interrupt_{other}": lambda: call.assert_interrupt(other, 0, 32),
        f"message_into_{other}": lambda: call.post_message_direct(other, 0, 2, 1, b"hostile"),
        f"signal_into_{other}": lambda: call.signal_event_direct(other, 0, 2, 1),
        f"registers_of_{other}": lambda: call.set_vp_registers({0x4000_0083: 0}, 0, other),
    }


def garbage_calls(scene: Scene, tally: Tally) -> None:
    """Any code with any arguments, and now and then something that no packet holds."""
    while scene.goes_on():
        code, arguments = hostile_call(scene.rng)
        if code is HypercallCode.GET_BIRTH:  # its descriptors are the program's own
            continue
        try:
            codec.close_all(scene.partition.hypercalls.call(code, **arguments).fds)
        except HypercallError as error:
            tally.met(error.status.name)
        except codec.EncodeError:
            tally.came_of_it("too much for a packet")
        else:
            tally.met("SUCCESS")
        tally.evidence = f"the last one: {code.name}"


def garbage_bytes(scene: Scene, tally: Tally) -> None:
    """No calls at all: cut, nested, much too long, with more descriptors than any call takes."""
    port, rng = scene.partition.hypercalls, scene.rng
    sock: socket.socket = port._socket
    eventfds = [os.eventfd(0, os.EFD_CLOEXEC) for _ in range(_FDS_MAX)]
    good = codec.encode([int(HypercallCode.GET_PARTITION_ID), {}])
    try:
        while scene.goes_on():
            data = rng.choice(
                (
                    rng.randbytes(rng.choice((1, 3, 100, 4000))),
                    good[: rng.randrange(1, len(good))],
                    good + b"\0",
                    b"\x91" * rng.randrange(1, 60_000),  # lists in lists
                    bytes(65_000),
                    b"\xdf\xff\xff\xff\xff",  # a map of four thousand million
                    good,
                )
            )
            count = rng.choice((0, 0, 1, 16, _FDS_MAX))
            with port._lock:
                socket.send_fds(sock, [data], eventfds[:count])
                reply = codec.receive_message(sock)
            if reply is None:
                tally.made += 1
                tally.breach("the hypervisor hung up")
                return
            message, fds = reply
            codec.close_all(fds)
            assert isinstance(message, list)
            tally.met(HvStatus(message[0]).name)
            tally.evidence = f"{len(data)} bytes and {count} descriptors: {HvStatus(message[0]).name}"
    finally:
        codec.close_all(eventfds)


def forged_ids(scene: Scene, tally: Tally) -> None:
    """Connections and ports that others have; numbers are their makers' own (partitions/stack/vmbus_ports.py)."""
    call, rng = scene.partition.hypercalls, scene.rng
    own = scene.partition.id
    while scene.goes_on():
        other = rng.choice([neighbour for neighbour in range(1, 12) if neighbour != own])
        flag = rng.randrange(1, 64)
        forged = rng.choice(
            (
                root_message_port(other),
                server_event_port(flag),
                driver_port(other),
                intercept_port(other),
                GUEST_INTERCEPT_CONNECTION + 1,
                rng.randrange(1 << 24) | 0x80_0000,
                2**32 - 1,
            )
        )
        match rng.randrange(5):
            case 0:
                tally.call(f"a message to {forged:#x}", lambda to=forged: call.post_message(to, 1, b"x" * 16))  # type: ignore[misc]
            case 1:
                tally.call(f"a signal to {forged:#x}", lambda to=forged: call.signal_event(to))  # type: ignore[misc]
            case 2:
                tally.call(
                    f"the doorbell of {forged:#x}",
                    lambda to=forged: call.claim_connection_doorbell(to),  # type: ignore[misc]
                )
            case 3:
                tally.call(
                    f"the doorbell of port {forged:#x}",
                    lambda to=forged: call.claim_port_doorbell(to),  # type: ignore[misc]
                )
            case _:
                tally.call(
                    f"a socket to {forged:#x}",
                    lambda to=forged: call.claim_connection_endpoint(to),  # type: ignore[misc]
                )
        tally.evidence = f"the last one: {forged:#x}"


def parents_deposit(scene: Scene, tally: Tally) -> None:
    """Pages are taken from, and given to, whoever is not its child."""
    call, own = scene.partition.hypercalls, scene.partition.id
    before = call.balance()
    for other in (ROOT_ID, own, *_NEIGHBOURS):
        pages = scene.rng.choice((1, 16, 1 << 20, 2**63))
        tally.call(f"pages of {other}", lambda: call.withdraw(other, pages))  # noqa: B023
        tally.call(f"pages for {other}", lambda: call.deposit(other, pages))  # noqa: B023
        if other != own:
            tally.call(f"the balance of {other}", lambda: call.balance(other))  # noqa: B023
    after = call.balance()
    if after != before:
        tally.breach(f"its balance was {before}, and is {after}")
    tally.evidence = f"available before and after: {before.available_pages}, {after.available_pages} pages"


def memory_greed(scene: Scene, tally: Tally) -> None:
    """All of the memory that was deposited, and then more; then it gives that back."""
    call, gpfn = scene.partition.hypercalls, _GREED_GPFN
    before, pages = call.balance(), _GREED_PAGES
    try:
        while True:
            try:
                slot = call.map_gpa_pages(gpfn, pages, MapFlags.READ | MapFlags.WRITE)
            except HypercallError as error:
                tally.met(error.status.name)
                if pages == 1:
                    break
                pages //= 16
                continue
            codec.close_all([slot.fd])
            gpfn += pages
        got = gpfn - _GREED_GPFN
        tally.evidence = (
            f"{got} pages of {before.available_pages} that it had, then {call.balance().available_pages}"
        )
        if got > before.available_pages:
            tally.breach(f"{got} pages, and it had {before.available_pages}")
    finally:
        with contextlib.suppress(HypercallError):
            call.unmap_gpa_pages(_GREED_GPFN, max(gpfn - _GREED_GPFN, 1))
