"""Guest programs that only tests need."""

import contextlib
import hashlib
import os
import random
import signal
import threading
import time
from pathlib import Path

from bus.channel_events import SendMessage
from bus.channel_messages import GpadlTeardown
from bus.gpadl import MAX_GPADL_PAGES
from bus.guids import SCSI
from bus.packets import GpaRange
from bus.synic import MESSAGE_CONNECTION, MessageType, TimerExpired
from partitions.child import Partition
from partitions.guests.pc_drivers import COM1, IDE, IdeDrive, SerialConsole
from partitions.machine_plan import instance_guid
from partitions.storage.disk import Disk
from partitions.storage.errors import DiskError
from partitions.vp.direct_access import DirectAccess
from partitions.vp.port_io import PortIo
from partitions.vp.processor import VirtualProcessor
from partitions.vsc.channel import GuestChannel
from partitions.vsc.conversation import VmbusError
from runtime.abi import HypercallError

TICK_SINT = 5
CLOCKS_APART = 10_000  # 1 ms, in 100 ns: the reference page is steered after the hypervisor's clock
LAST_VP = 2
REQUESTS = 300
LONG_LISTS = 10  # of 64 KiB each: more than the root's saved state can hold


def list_descriptors(partition: Partition) -> None:
    """Report what this process holds, as /proc says it."""
    links = []
    for path in Path("/proc/self/fd").iterdir():
        try:
            links.append(str(path.readlink()))
        except FileNotFoundError:  # the directory's own
            continue
    partition.report("descriptors", links=sorted(links))


def never_end_gpadls(partition: Partition) -> None:
    """Begin long page lists, and end none of them."""
    vmbus = partition.vmbus
    offer = vmbus.find_offer(SCSI, instance_guid(partition.name, "disk0"))
    for _ in range(LONG_LISTS):
        pages = GpaRange.contiguous(0x1000, MAX_GPADL_PAGES * 4096)
        _, messages = vmbus._client.create_gpadl(offer.relid, [pages])
        for message in messages[:-1]:
            assert isinstance(message, SendMessage)
            vmbus._post(message.connection_id, message.payload)
    partition.report("begun", lists=LONG_LISTS)


def tick_on_every_vp(partition: Partition) -> None:
    """Each VP its own timer and thread, a disk beside them; then wait to be looked at."""
    ticks = dict.fromkeys(range(len(partition.vps)), 0)

    def serve(vp: VirtualProcessor) -> None:
        vp.enable((TICK_SINT,))
        vp.timers[3].periodic(20_000, sint=TICK_SINT)
        while ticks[vp.index] < 5:
            vp.wait()
            for _, _, payload in vp.take_messages(TICK_SINT):
                late = partition.reference_time() - TimerExpired.decode(payload).expired
                assert late > -CLOCKS_APART
                ticks[vp.index] += 1
        vp.timers[3].stop()

    before = partition.reference_time()
    threads = [vp.run(serve) for vp in partition.vps]
    for thread in threads:
        thread.join()
    passed = partition.reference_time() - before
    with partition.open_disk("disk0") as disk:
        disk.write(0, bytes(512))
        disk.flush()
        partition.report("ticked", ticks=[ticks[vp.index] for vp in partition.vps], passed=passed)
        signal.pause()


def move_under_load(partition: Partition) -> None:
    """Write and read without pause while another thread has the channel's interrupts wander from VP to VP."""
    moves = 0
    stop = threading.Event()

    def wander(opened: GuestChannel) -> None:
        nonlocal moves
        while not stop.is_set() or moves < 3 * len(partition.vps):
            moves += 1
            opened.move_interrupts(moves % len(partition.vps))
        opened.move_interrupts(LAST_VP)

    with (
        partition.open_channel("disk0", SCSI, 1 << 20) as opened,
        Disk(opened.channel, opened.data, opened.data_gpfn) as disk,
    ):
        thread = threading.Thread(target=wander, args=(opened,))
        thread.start()
        for number in range(2 * REQUESTS):
            if number == REQUESTS:  # from here on no move rings for a flag that stands where nobody looks
                stop.set()
                thread.join()
            block = number.to_bytes(2, "little") * 256
            disk.write(512 * (number % 64), block)
            assert disk.read(512 * (number % 64), 512) == block
        try:
            opened.move_interrupts(len(partition.vps))
        except VmbusError as error:
            partition.report("moved", moves=moves, refused=str(error))
        signal.pause()


def work_a_pc(partition: Partition) -> int:
    """Write sectors, read them back, and say on the serial line how far that is; 1 if one was wrong.

    Each access is part of a long sequence: one that is lost or done twice shows in what is read. SIGTERM: enough.
    """
    rounds, wrong, enough = 0, 0, threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: enough.set())
    with PortIo(partition) as io:
        console, drive = SerialConsole(io), IdeDrive(io)
        while not enough.is_set():
            number, rounds = rounds, rounds + 1
            io.outb(COM1 + 7, number)
            data = hashlib.sha512(number.to_bytes(4, "little")).digest() * 16
            drive.write(number % 50, data)
            io.outb(IDE + 2, 1)
            found = drive.read(number % 50, 2)
            # By single words, too: each moves the disk's buffer on by one.
            drive._command(0x20, number % 50, 1)
            drive._await_data()
            words = b"".join(io.inw(IDE).to_bytes(2, "little") for _ in range(64))
            is_right = found == data and words == data[:128] and io.inb(COM1 + 7) == number & 0xFF
            wrong += not is_right
            console.write(f"round {number} {'right' if is_right else 'WRONG'}\n")
    partition.report("worked", rounds=rounds, wrong=wrong)
    return 1 if wrong else 0


def spoil_the_page(partition: Partition) -> int:
    """Garbage where direct intercepts go; then an honest access, to the same devices."""
    rng, accesses = random.Random(5), partition.accesses
    assert isinstance(accesses, DirectAccess)
    kinds = [MessageType.X64_IO_PORT_INTERCEPT, MessageType.GPA_INTERCEPT, MessageType.UNMAPPED_GPA, 0, 7]
    for _ in range(300):
        payload = bytearray(rng.randbytes(rng.choice([0, 1, 80, 128])))
        if len(payload) == 128 and rng.random() < 0.8:  # so nearly right that it is an access
            payload[5] = rng.randrange(2)
            payload[40:42] = rng.choice([0x60, 0x71, 0x1F0, 0x1F7, 0x3F8, 0x3FF]).to_bytes(2, "little")
            payload[42] = rng.choice([1, 2, 4, 9, 10, 12, 25, 26, 28])
        accesses._ask(rng.choice(kinds), bytes(payload))  # type: ignore[arg-type]
    with PortIo(partition) as io:
        io.outb(COM1 + 3, 0x03)
        io.outb(COM1 + 7, 0x5A)
        is_right = io.inb(COM1 + 7) == 0x5A
    partition.report("spoiled", right=is_right)
    return 0 if is_right else 1


def leave_in_the_middle(partition: Partition) -> None:
    """Open the disk, ask for much, let go of it while it is being done, in every way; die of it in the end.

    args: seed, turns. Only blocks from 1024 to 2047 are written.
    """
    rng, turns = random.Random(int(partition.args["seed"])), int(partition.args["turns"])
    ways = [*(_let_go, _take_pages_back) * 5, _scribble]  # a broken ring costs pauses
    for _ in range(turns):
        with contextlib.suppress(VmbusError, DiskError, HypercallError):
            opened = partition.open_channel("disk0", SCSI, 1 << 20)
            disk = Disk(opened.channel, opened.data, opened.data_gpfn)
            transfer_bytes = rng.choice((4096, 16384))
            requests = disk.open_queue(32, transfer_bytes)
            where = [(1024 + rng.randrange(1020)) * 4096 for _ in range(32)]
            requests.submit_writes(list(range(16)), where[:16])
            requests.submit_reads(list(range(16, 32)), where[16:])
            time.sleep(rng.choice((0, 0, rng.uniform(0, 0.002))))
            rng.choice(ways)(partition, opened, rng)
            opened.close()
    partition.report("leaves")
    with contextlib.suppress(VmbusError, DiskError):
        opened = partition.open_channel("disk0", SCSI, 1 << 20)
        requests = Disk(opened.channel, opened.data, opened.data_gpfn).open_queue(32, 16384)
        requests.submit_writes(list(range(32)), [1024 * 4096] * 32)
    os.kill(os.getpid(), signal.SIGKILL)


def _let_go(partition: Partition, opened: GuestChannel, rng: random.Random) -> None:
    """Its end closes the channel and takes the pages back, with all that is in flight."""


def _take_pages_back(partition: Partition, opened: GuestChannel, rng: random.Random) -> None:
    """In the wrong order: the GPADL, and the slot itself, of a channel that is open."""
    vmbus = partition.vmbus
    teardown = GpadlTeardown(opened.relid, opened.gpadl).encode()
    vmbus._post(MESSAGE_CONNECTION, teardown)
    with contextlib.suppress(HypercallError):
        partition.hypercalls.unmap_gpa_pages(opened.slot.gpfn, opened.slot.pages)
    time.sleep(rng.uniform(0, 0.005))


def _scribble(partition: Partition, opened: GuestChannel, rng: random.Random) -> None:
    """Over rings and page lists that are being read."""
    memory = opened.slot.memory
    end = len(memory) - len(opened.data)
    for _ in range(rng.randrange(1, 200)):
        at = rng.randrange(end - 8)
        memory[at : at + 8] = rng.randbytes(8)


def read_on_and_on(partition: Partition) -> None:
    """A read every few milliseconds, and a report every tenth, until the machine is stopped."""
    done = 0
    with partition.open_disk("disk0") as disk, disk.open_queue(1, 4096) as queue:
        while True:
            queue.read(0)
            time.sleep(0.002)
            if (done := done + 1) % 10 == 0:
                partition.report("read_on", done=done)
