"""More rows of the table in `behaviours`: timers, intercepts, statistics, device domains, a parent's reach."""

from __future__ import annotations

from typing import Final

from runtime.abi import (
    TIMER_AUTO_ENABLE,
    TIMER_ENABLE,
    TIMER_PERIODIC,
    TIMER_SINT_SHIFT,
    HypercallCode,
    InterceptMask,
    InterceptType,
    OverlayPage,
    PortProperty,
    timer_config_register,
    timer_count_register,
)
from runtime.hypervisor.partition import Partition
from runtime.simulation.stage import NUMBERS, READ_WRITE, SINTS, Behaviour, Proposal, Stage

_C = HypercallCode
IO_PORTS: Final = (0x60, 0x3F8)
MMIO_PAGE: Final = 0x7000  # beyond whatever is mapped here
TIMERS: Final = (0, 1)
TICKS: Final = (1, 5_000, 200_000)  # of 100 ns
_INTERCEPTED: Final = int(InterceptMask.READ | InterceptMask.WRITE)


def set_timer(stage: Stage, who: str, partition: Partition) -> Proposal:
    timer, kind = stage.pick(TIMERS), stage.pick((TIMER_AUTO_ENABLE, TIMER_PERIODIC, 0))
    config = kind | TIMER_ENABLE | stage.pick(SINTS) << TIMER_SINT_SHIFT if stage.below(4) else 0
    registers = [[timer_config_register(timer), config], [timer_count_register(timer), stage.pick(TICKS)]]
    return stage.call(who, _C.SET_VP_REGISTERS, vp=0, registers=registers)


def watch_accesses(stage: Stage, who: str, partition: Partition) -> Proposal:
    """An intercept on a child, or none any more."""
    if (child := stage.child(partition)) is None:
        return None
    if stage.below(2):
        kind, parameter = InterceptType.IO_PORT, stage.pick(IO_PORTS)
    else:
        kind, parameter = InterceptType.MMIO, MMIO_PAGE
    access = _INTERCEPTED if stage.below(4) else 0
    return stage.call(
        who, _C.INSTALL_INTERCEPT, partition=child, access=access, type=int(kind), parameter=parameter
    )


def access(stage: Stage, who: str, partition: Partition) -> Proposal:
    if stage.below(2):
        return stage.call(who, _C.ACCESS_PORT, vp=0, port=stage.pick(IO_PORTS), size=1, write=stage.below(2))
    return stage.call(who, _C.ACCESS_MEMORY, vp=0, gpa=MMIO_PAGE * 4096 + 8 * stage.below(4), size=4)


def answer_access(stage: Stage, who: str, partition: Partition) -> Proposal:
    """For the children whose call waits for it."""
    world = stage.simulation.world
    waiting = [child for child in partition.children if world.pending.get(child)]
    if not waiting:
        return None
    child = stage.simulation.label_of(stage.pick(waiting))
    kind = stage.pick((InterceptType.IO_PORT, InterceptType.MMIO))
    return stage.call(who, _C.REGISTER_INTERCEPT_RESULT, partition=child, vp=0, type=int(kind), value=0x55)


def map_statistics(stage: Stage, who: str, partition: Partition) -> Proposal:
    if len(partition.stats_pages) < 2 and stage.below(3) == 0:
        code = _C.MAP_STATS_PAGE
    else:
        code = _C.UNMAP_STATS_PAGE
    return stage.call(who, code, partition=stage.child(partition) or who, type=stage.below(5), index=0)


def use_device_domain(stage: Stage, who: str, partition: Partition) -> Proposal:
    """One's own pages for a child that drives a device."""
    domain, child = stage.below(3), stage.child(partition)
    gpfn = stage.pick(partition.gpa.bases) if partition.gpa.bases else 0
    steps = [stage.call(who, _C.CREATE_DEVICE_DOMAIN, domain=domain)]
    if child is not None:
        steps.append(stage.call(who, _C.ATTACH_DEVICE_DOMAIN, domain=domain, device=child))
    where = {"domain": domain, "gpfn": gpfn, "pages": 1}
    steps.append(stage.call(who, _C.MAP_DEVICE_GPA_PAGES, **where, flags=READ_WRITE))
    if stage.below(2):
        steps.append(stage.call(who, _C.UNMAP_DEVICE_GPA_PAGES, **where))
        if child is not None:
            steps.append(stage.call(who, _C.DETACH_DEVICE_DOMAIN, device=child))
        steps.append(stage.call(who, _C.DELETE_DEVICE_DOMAIN, domain=domain))
    return steps


def reach_into_child(stage: Stage, who: str, partition: Partition) -> Proposal:
    """Read or write its memory, interrupt it, put something into its slots."""
    if (child := stage.child(partition)) is None:
        return None
    where = {"partition": child, "vp": 0}
    match stage.below(5):
        case 0:
            return stage.call(who, _C.ASSERT_VIRTUAL_INTERRUPT, **where, vector=0x20 + stage.below(200))
        case 1:
            return stage.call(
                who, _C.SIGNAL_EVENT_DIRECT, **where, sint=stage.pick(SINTS), flag=stage.below(9)
            )
        case 2:
            sint = stage.pick(SINTS)
            return stage.call(who, _C.POST_MESSAGE_DIRECT, **where, sint=sint, type=1, payload=b"direct")
        case 3:
            return stage.call(who, _C.READ_GPA, **where, gpa=4096 * stage.below(NUMBERS), size=8)
        case _:
            gpa = 4096 * stage.below(NUMBERS)
            return stage.call(who, _C.WRITE_GPA, **where, gpa=gpa, data=b"\1" * 8)


def change_port(stage: Stage, who: str, partition: Partition) -> Proposal:
    if not partition.ports:
        return None
    port = stage.pick(list(partition.ports))
    if stage.below(2):
        return stage.call(who, _C.GET_PORT_COUNTS, port=port)
    target = int(PortProperty.TARGET_VP)
    return stage.call(who, _C.SET_PORT_PROPERTY, port=port, property=target, value=stage.below(2))


def interrupt_itself(stage: Stage, who: str, partition: Partition) -> Proposal:
    if stage.below(2):
        return stage.call(who, _C.CLAIM_OVERLAY_PAGE, page=int(OverlayPage.INTERRUPTS), vp=0)
    return stage.call(who, _C.SEND_SYNTHETIC_CLUSTER_IPI, vector=0x30, processors=1 + stage.below(3))


DEVICE_BEHAVIOURS: Final = (
    Behaviour("set a timer", 12, set_timer),
    Behaviour("watch a child's accesses", 12, watch_accesses),
    Behaviour("access what may be watched", 16, access),
    Behaviour("answer an access", 40, answer_access),
    Behaviour("map statistics", 6, map_statistics),
    Behaviour("use a device domain", 6, use_device_domain),
    Behaviour("reach into a child", 24, reach_into_child),
    Behaviour("change a port", 10, change_port),
    Behaviour("interrupt itself", 6, interrupt_itself),
)
