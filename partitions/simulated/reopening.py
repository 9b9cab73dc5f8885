"""partitions.guests.reopening on a simulated machine: opens its disk, uses it a little, closes it, and does so again.

What it wrote in one opening it must find in the next. So the control plane has work at all times.
"""

from collections.abc import Callable, Iterator
from typing import Any, Final

from partitions.guests.reopening import BLOCK_BYTES, BLOCKS, _content
from partitions.simulated.guest import SimulatedGuest
from partitions.storage.disk import Disk
from partitions.storage.errors import DiskError
from partitions.storage.handshake import DiskDescription
from partitions.storage.requests import Ticket

_LENGTH: Final = BLOCKS * BLOCK_BYTES


class ReopeningGuest(SimulatedGuest):
    """Its disk is opened `turns` times, as far as time goes."""

    def __init__(self, *arguments: Any, on_wrong: Callable[[str], None], **named: Any) -> None:
        """`on_wrong`: told if the disk held something else than was written."""
        super().__init__(*arguments, **named)
        self.turns = 0
        self._on_wrong = on_wrong
        self._work: Iterator[Ticket] | None = None
        self._ticket: Ticket | None = None
        self._enough = False

    def _begin(self, description: DiskDescription, sequence: int) -> None:
        assert self._data_pool is not None
        assert self.channel is not None
        pool, self._data_pool = self._data_pool, None
        self._disk = Disk(self.channel, pool._data, pool.gpfn, description=description)
        self._disk.requests.sequence = sequence
        self._work = self._use(self._disk)
        self._ticket = next(self._work)

    def _use(self, disk: Disk) -> Iterator[Ticket]:
        offset = self._plan.first_block * BLOCK_BYTES
        buffer = disk.allocate(_LENGTH)
        view = buffer.view[:_LENGTH]
        if self.turns:
            yield disk.submit_read(offset, buffer, _LENGTH)
            self._compare(view, self.turns - 1)
        view[:] = _content(self.turns)
        yield disk.submit_write(offset, buffer, _LENGTH)
        yield disk.submit_flush()
        view[:] = bytes(_LENGTH)
        yield disk.submit_read(offset, buffer, _LENGTH)
        self._compare(view, self.turns)

    def _compare(self, view: memoryview, turn: int) -> None:
        if bytes(view) != _content(turn):
            self._on_wrong(f"{self.process.name}: opened the {self.turns + 1}. time, found other data")

    def _look(self) -> None:
        self._is_awake = False
        if self.channel is None:
            return
        if self._asked is not None:
            self._answered()
        elif self._work is not None:
            self._disk.poll()
            if self._ticket is not None and self._ticket.done:
                self._go_on(self._work, self._ticket)
        if self.channel is not None:
            self._turn_over()

    def _go_on(self, work: Iterator[Ticket], ticket: Ticket) -> None:
        try:
            ticket.result()
            self._ticket = next(work)
        except DiskError as error:
            self._work = None
            self._report("reopened_failed", error=str(error))
        except StopIteration:
            self._work = None
            self.turns += 1
            self._close_channel()

    def _close_channel(self) -> None:
        assert self.channel is not None
        assert self._offer is not None
        self.channel.close()
        self.channel, self._ticket = None, None
        del self._disk
        self._carry_out(self._client.close(self._offer.relid))
        self._carry_out(self._client.teardown_gpadl(self._gpadl))

    def _torn_down(self) -> None:
        """The host touches its pages no more."""
        assert self._slot is not None
        slot, self._slot = self._slot, None
        slot.close()
        self._call.unmap_gpa_pages(slot.gpfn, slot.pages)
        if not self._enough:
            self.process.after(self._rng.expovariate(1) * self._costs.think, self._look_for_the_disk)

    def end_soon(self) -> None:
        self._enough = True

    def act(self) -> None:
        """It does what it does anyway."""
