"""A guest that breaks every rule within its reach, and reports what it got for each.

For tests and for the curious: run it beside a guest that works, and see that the other one does not notice. args:
device (text): a disk of its own to abuse; seed (number): the same seed attacks in the same way.
"""

import contextlib
import random
import struct
import time
from collections import Counter
from collections.abc import Callable
from typing import Final

from bus.guids import SCSI
from bus.native import RingClosed
from bus.synic import CHANNEL_MESSAGE, CONTACT_CONNECTION
from partitions.child import Partition
from partitions.guests.hostile_calls import hostile_call
from partitions.vmbus_guest import GuestChannel, VmbusError
from runtime import codec
from runtime.abi import HypercallCode, HypercallError, MapFlags, PartitionProperty, PortType

ROOT_ID: Final = 1
GARBAGE_MESSAGES: Final = 300
GARBAGE_CALLS: Final = 500
RING_ATTACKS: Final = 24
STORM_SIGNALS: Final = 5_000
OFFER_S_MAX: Final = 1.0
_DATA_BYTES: Final = 64 * 1024


def main(partition: Partition) -> None:
    rng = random.Random(int(partition.args.get("seed", 0)))
    for attack in (_forbidden_calls, _garbage_calls, _break_rings, _garbage_messages, _greed):
        outcomes = attack(partition, rng)
        partition.report("attacked", attack=attack.__name__.strip("_"), outcomes=dict(outcomes))


def _forbidden_calls(partition: Partition, _: random.Random) -> Counter[str]:
    """What a guest's privileges and its place in the tree do not allow."""
    call = partition.hypercalls
    attempts: dict[str, Callable[[], object]] = {
        "create_partition": lambda: call.create_partition(),
        "take_from_root": lambda: call.withdraw(ROOT_ID, 1),
        "delete_root": lambda: call.delete(ROOT_ID),
        "finalize_root": lambda: call.finalize(ROOT_ID),
        "more_privileges": lambda: call.set_property(
            partition.id, PartitionProperty.PRIVILEGE_FLAGS, 2**55 - 1
        ),
        "map_roots_pages": lambda: call.map_partition_pages(ROOT_ID, 0, 1, 0x9000),
        "port_in_root": lambda: call.create_port(
            7, partition.id, PortType.EVENT, 2, partition=ROOT_ID, flag_count=1
        ),
        "foreign_doorbell": lambda: call.claim_port_doorbell(0x2_0001),
        "foreign_connection": lambda: call.post_message(3, CHANNEL_MESSAGE, b""),
        "hypervisors_message": lambda: call.post_message(CONTACT_CONNECTION, 0x8000_0000, b""),
        "unsealed_sint_0": lambda: call.create_port(8, ROOT_ID, PortType.EVENT, 0, flag_count=1),
    }
    outcomes: Counter[str] = Counter()
    for name, attempt in attempts.items():
        try:
            attempt()
        except HypercallError as error:
            outcomes[f"{name}: {error.status.name}"] += 1
        else:
            outcomes[f"{name}: ALLOWED"] += 1
    return outcomes


def _garbage_calls(partition: Partition, rng: random.Random) -> Counter[str]:
    """Any code with any arguments, and bytes that are no call at all."""
    outcomes: Counter[str] = Counter()
    for _ in range(GARBAGE_CALLS):
        code, arguments = hostile_call(rng)
        if code is HypercallCode.GET_BIRTH:  # its descriptors are the program's own
            continue
        try:
            codec.close_all(partition.hypercalls.call(code, **arguments).fds)
        except HypercallError as error:
            outcomes[error.status.name] += 1
        except codec.EncodeError:
            outcomes["too much for a packet"] += 1
        else:
            outcomes["SUCCESS"] += 1
    return outcomes


def _garbage_messages(partition: Partition, rng: random.Random) -> Counter[str]:
    """Channel messages: random, truncated, unknown, out of order."""
    outcomes: Counter[str] = Counter()
    for _ in range(GARBAGE_MESSAGES):
        kind = rng.choice((0, rng.randrange(1, 31), 0xFFFF_FFFF))
        body = rng.randbytes(rng.choice((0, 4, 12, 40, 148, 232)))
        message = struct.pack("<II", kind, 0) + body
        try:
            partition.hypercalls.post_message(
                CONTACT_CONNECTION, CHANNEL_MESSAGE, rng.choice((message, rng.randbytes(rng.randrange(16))))
            )
        except HypercallError as error:
            outcomes[error.status.name] += 1
        else:
            outcomes["posted"] += 1
    return outcomes


def _break_rings(partition: Partition, rng: random.Random) -> Counter[str]:
    """Indexes past the end, descriptors of nonsense, page numbers of others; one channel is lost for each."""
    outcomes: Counter[str] = Counter()
    for number in range(RING_ATTACKS):
        if (opened := _open_again(partition)) is None:
            outcomes["not offered again"] += 1
            break
        with opened:
            memory = opened.slot.memory
            match number % 4:
                case 0:
                    struct.pack_into("<I", memory, 0, rng.choice((1, 4, 0xFFFF_FFF8, 1 << 20)))
                case 1:
                    struct.pack_into(
                        "<HHHHQ", memory, 4096, 6, rng.randrange(65536), rng.randrange(65536), 0, 1
                    )
                    struct.pack_into("<I", memory, 0, 128)
                case 2:
                    pfns = struct.pack("<Q", rng.choice((0, 2**52, 2**64 - 1)))
                    opened.channel.send_gpa_direct(bytes(64), 0, 4096, pfns, 1)
                case _:
                    memory[4096 : 4096 + 4096] = rng.randbytes(4096)
                    struct.pack_into("<I", memory, 0, 2048)
            with contextlib.suppress(RingClosed):  # the host was quick to take the channel away
                for _ in range(STORM_SIGNALS):
                    opened.channel.kick()
            outcomes["channel attacked"] += 1
    return outcomes


def _open_again(partition: Partition) -> GuestChannel | None:
    """A channel that was taken away is offered again, a few times; the new offer takes a moment to arrive."""
    deadline = time.monotonic() + OFFER_S_MAX
    while True:
        try:
            return partition.open_channel(str(partition.args["device"]), SCSI, _DATA_BYTES)
        except VmbusError:
            if time.monotonic() > deadline:
                return None
            time.sleep(0.005)


def _greed(partition: Partition, _: random.Random) -> Counter[str]:
    """All of the memory that was deposited, and then more."""
    outcomes: Counter[str] = Counter()
    gpfn, pages = 0x10_0000, 256
    while True:
        try:
            slot = partition.hypercalls.map_gpa_pages(gpfn, pages, MapFlags.READ | MapFlags.WRITE)
        except HypercallError as error:
            outcomes[error.status.name] += 1
            return outcomes
        codec.close_all([slot.fd])
        outcomes["slot of 256 pages"] += 1
        gpfn += pages
