"""A partition with children of its own: what the root does for its, this one does for them.

It has a processor more than its config says: the one whose VMBus interrupt is its children's, as VP 0's is that of
its own parent. Messages, flags and lines of the two buses so never meet.

Nobody takes over from it. The hypervisor ends its children with it, so nothing is recorded for a successor.
"""

import contextlib
import signal
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, Protocol

import trio

from bus.seam import Seam
from bus.synic import VMBUS_SINT
from partitions.descendants import Described, children_of
from partitions.machine_plan import PartitionPlan
from partitions.stack.offered_device import OfferedDevice
from partitions.stack.saved_state import RECORD_BYTES
from partitions.stack.stack_resources import RootResources
from partitions.stack.virtualization_stack import BuildError, VirtualizationStack
from partitions.storage.disk import Disk
from partitions.storage.errors import DiskError
from partitions.storage.passed_on import DATA_BYTES, PassedOnDisk
from partitions.vp.processor import VirtualProcessor
from partitions.vsc.conversation import VmbusError
from runtime.abi import ExitStatus, HypercallError
from runtime.hypercalls.caller import HypercallPort

CHILDREN_GRACE_MS: Final = 1_500  # to end by themselves once we are to; below what the machine grants us


class Parent(Protocol):
    """What of a partition it takes to have children."""

    id: int
    name: str
    hypercalls: HypercallPort

    @property
    def vps(self) -> Sequence[VirtualProcessor]: ...
    def take_descendants(self) -> tuple[Mapping[str, Any], list[Described]]: ...
    def open_disk(self, name: str, data_bytes: int) -> contextlib.AbstractContextManager[Disk]: ...
    def report(self, kind: str, **fields: object) -> None: ...


async def serve_children(
    partition: Parent, devices: Mapping[str, OfferedDevice] | None = None
) -> Mapping[str, ExitStatus]:
    """See `Partition.run_children`. Cancelling it stops serving; the children go when this partition does."""
    machine, described = partition.take_descendants()
    plans = [PartitionPlan.of_tree(one, machine, described) for one in children_of(partition.name, described)]
    with contextlib.ExitStack() as opened:
        offered = dict(devices or {})
        for name in sorted({one.name for plan in plans for one in plan.attachments} - set(offered)):
            offered[name] = opened.enter_context(_pass_on(partition, name))
        vp = _add_processor(partition)
        failure: BuildError | None = None
        async with trio.open_nursery() as nursery:
            stack = _make_stack(vp, partition, nursery)
            nursery.start_soon(stack.receive_messages)
            nursery.start_soon(stack.watch_children)
            nursery.start_soon(_await_power_off, partition, stack)
            try:
                for plan in plans:
                    stack.create_child(plan, offered)
                await stack.wait_for_children()
            except BuildError as error:
                failure = error
            finally:
                stack.quiesce()
            nursery.cancel_scope.cancel()
        if failure is not None:
            raise failure
        return {
            guest.name: partition.hypercalls.get_exit_status(child) or ExitStatus(None, None)
            for child, guest in stack.guests.items()
        }


@contextlib.contextmanager
def _pass_on(partition: Parent, name: str) -> Iterator[OfferedDevice]:
    """Our own disk of that name, to be offered on. Raises BuildError."""
    with contextlib.ExitStack() as opened:
        try:
            disk = opened.enter_context(partition.open_disk(name, DATA_BYTES))
        except (KeyError, VmbusError, HypercallError, DiskError) as error:
            raise BuildError(f"device {name}: {error}") from error
        yield PassedOnDisk(name, disk)


def _add_processor(partition: Parent) -> VirtualProcessor:
    """Raises BuildError."""
    try:
        lines = partition.hypercalls.create_vp(1 + max(vp.index for vp in partition.vps))
    except HypercallError as error:
        raise BuildError(
            f"partition {partition.name}: no processor to serve children with: {error}"
        ) from error
    assert lines is not None  # our own
    vp = VirtualProcessor(lines, partition.hypercalls)
    vp.enable((VMBUS_SINT,))
    return vp


def _make_stack(vp: VirtualProcessor, partition: Parent, nursery: trio.Nursery) -> VirtualizationStack:
    """Without a successor: nothing is recorded, and nowhere do we die on purpose."""
    resources = RootResources(
        partition.hypercalls,
        partition.id,
        vp.event_flags,
        nursery,
        partition.report,
        lambda: None,
        lambda _: memoryview(bytearray(RECORD_BYTES)),
        Seam(),
        name=partition.name,
        vp=vp.index,
    )
    return VirtualizationStack(resources, vp)


async def _await_power_off(partition: Parent, stack: VirtualizationStack) -> None:
    """SIGTERM: everybody in the machine has got one. Who does not end by it in time is finalized."""
    with trio.open_signal_receiver(signal.SIGTERM) as signals:
        async for _ in signals:
            with trio.move_on_after(CHILDREN_GRACE_MS / 1000):
                await stack.wait_for_children()
            for child in set(stack.guests) - stack.ended:
                partition.report("child_finalized", child=stack.guests[child].name)
                with contextlib.suppress(HypercallError):
                    partition.hypercalls.finalize(child)
