"""Port accesses that the broker serves in C: exactly what the state machine would have done, and nothing beside it."""

import os
import random
import socket
from typing import Any

import pytest

from bus import native
from bus.intercept_messages import PORT_MESSAGE_BYTES
from runtime import codec
from runtime.abi import (
    SINT_MASKED,
    HvStatus,
    HypercallCode,
    InterceptType,
    Privilege,
    RegisterName,
    sint_register,
)
from runtime.hypervisor.dispatch import Hypervisor
from runtime.hypervisor.effects import CompleteCall, RaiseLine
from runtime.hypervisor.recorded import EFFECT_NAMES
from runtime.hypervisor.recorder import read_events
from runtime.hypervisor.self_portrait import portrait
from tests.runtime.broker_in_process import BrokerInProcess, brokers

_C, _R = HypercallCode, RegisterName
_PORT, _LAST = 0x3F8, 0x3FF
_STEPS = 500


def _access(**args: int) -> list[object]:
    return [int(_C.ACCESS_PORT), args]


def _result(child: int, **args: int) -> list[object]:
    return [int(_C.REGISTER_INTERCEPT_RESULT), {"partition": child, "vp": 0, "type": 0, "value": 0} | args]


def _set_up(world: BrokerInProcess, children: int = 2) -> list[int]:
    world.root.enable_synic(0, [0])
    made = [world.child(vps=2) for _ in range(children)]
    for child in made:
        world.root.intercept_ports(child, _PORT, _LAST)
    return made


def _take(world: BrokerInProcess) -> tuple[int, int, bytes, bool] | None:
    """As the root's VP does it."""
    return native.synic_take(world.machine.partitions[1].vps[0].sim_page, 0)


def _by_python_alone(world: BrokerInProcess) -> None:
    world.broker.loop.poll = world.broker.loop._wait


def _state(world: BrokerInProcess) -> dict[str, Any]:
    """Whatever anybody could see of it; times left out."""
    machine, hypervisor = world.machine, world.broker.hypervisor
    vps = [(at.id, vp) for at in machine.partitions.values() for vp in at.vps.values()]
    return {
        "vps": [
            (at, vp.index, vp.intercept.registers, vp.intercept.access, list(vp.intercept.waiting))
            for at, vp in vps
        ],
        "slot": bytes(machine.partitions[1].vps[0].sim_page[: 16 + PORT_MESSAGE_BYTES]),
        "held": set(world.broker._sockets._held),
        "unwatched": set(world.broker._sockets._unwatched),
        "calls": {code: (count.made, count.refused) for code, count in hypervisor.calls.items()},
        "calls of": {at: (count.made, count.refused) for at, count in machine.calls_of.items()},
        "all calls": (machine.calls.made, machine.calls.refused),
        "effects": [hypervisor.effects[kind] for kind in (RaiseLine, CompleteCall)],
        "recorded": world.broker._lent._recorder.events,
        "line": _line(world),
    }


def _differ(fast: dict[str, Any], plain: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    return {name: (fast[name], plain[name]) for name in fast if fast[name] != plain[name]}


def _recorded(world: BrokerInProcess) -> list[tuple[object, ...]]:
    events = read_events(bytes(world.recording), EFFECT_NAMES)
    return [(e.number, e.kind, e.partition, e.detail, e.status, e.effects) for e in events]


def _line(world: BrokerInProcess) -> int:
    """How often the root's line was raised since we looked."""
    fd = world.broker.host.line_fd(1, 0)
    os.set_blocking(fd, False)
    try:
        return os.eventfd_read(fd)
    except BlockingIOError:
        return 0


def _packet(rng: random.Random, children: list[int], waiting: set[int]) -> tuple[int, object, int]:
    """(who, what, how many descriptors with it): mostly what a guest and its parent do all day."""
    child = rng.choice(children)
    size = rng.choice((1, 1, 1, 2, 4, rng.randrange(9)))
    port = rng.choice((_PORT, _LAST, _PORT - 1, _LAST + 1, 0xFFFF, 0xFFFE, rng.randrange(0x1_0010)))
    value = rng.choice((0, 0x5A, 0xFF, 0x100, 0xFFFF, 2**32 - 1, 2**32, rng.randrange(2**33)))
    access: dict[str, Any] = {"vp": 0, "port": port, "size": size}
    if rng.random() < 0.5:
        access |= {"write": 1, "value": value % 2 ** (8 * size)} if rng.random() < 0.8 else {"value": value}
    match rng.randrange(150):
        case 0:
            return child, _access(**access | {"vp": rng.randrange(3)}), 0
        case 1:
            return child, _access(**access | {"count": rng.randrange(3), "gpa": 0x1000 * rng.randrange(2)}), 0
        case 2:
            return child, [int(_C.ACCESS_PORT), access | {rng.choice("ab"): 1}], 0
        case 3:
            return (
                child,
                [int(_C.ACCESS_PORT), access | {"size": rng.choice((True, None, "1", b"1", -1, 1.0))}],
                0,
            )
        case 4:
            return child, _access(**access), 1
        case 5:
            packet = bytearray(codec.encode(_access(**access)))
            packet[rng.randrange(len(packet))] = rng.randrange(256)
            return child, bytes(packet[: rng.choice((len(packet), rng.randrange(1, len(packet) + 1)))]), 0
        case 6:  # a number in more bytes than it needs, and a name twice
            long = b"\x92\xcd\x8f\x05\x83\xa2vp\xcf" + bytes(8) + b"\xa4port\xce\0\0\x03\xf8\xa4size\xcc\x01"
            return child, rng.choice((long, long.replace(b"\x83", b"\x84") + b"\xa2vp\0")), 0
        case 7:
            return 1, _result(child, type=rng.choice((0, 0x11, 5)), vp=rng.randrange(2), value=value), 0
        case 8:
            return 1, _result(rng.choice((child, 99, 1, 2**64 - 1))), rng.randrange(2)
        case 9:
            pairs = [[int(_R.RIP), rng.randrange(3)], [int(_R.INTERCEPT_SUSPEND), 0]]
            return 1, [int(_C.SET_VP_REGISTERS), {"partition": child, "vp": 0, "registers": pairs}], 0
        case 10:
            names = [int(_R.RAX), int(_R.RIP), int(_R.INTERCEPT_SUSPEND)]
            return 1, [int(_C.GET_VP_REGISTERS), {"partition": child, "vp": 0, "names": names}], 0
        case 11:
            mask = rng.choice((0, 1, 2, 3, 3, 3, 3))
            wanted = {
                "partition": child,
                "access": mask,
                "type": 0x11,
                "parameter": _PORT | _LAST << 16,
                "vp": 0,
            }
            return 1, [int(_C.INSTALL_INTERCEPT), wanted], 0
        case 12:
            sint = rng.choice((16, 16, 16, 16, 17, SINT_MASKED))
            pairs = [[int(sint_register(0)), sint], [int(_R.SCONTROL), int(rng.random() < 0.8)]]
            return 1, [int(_C.SET_VP_REGISTERS), {"vp": 0, "registers": pairs}], 0
        case 13:
            return rng.choice((1, child)), [int(_C.GET_PARTITION_ID), {}], 0
        case 14:
            return 1, [int(_C.SET_VP_REGISTERS), {"vp": 0, "registers": [[int(_R.EOM), 0]]}], 0
        case 15:
            return rng.choice((1, child)), _result(child), 0
        case _ if child in waiting:
            return 1, _result(child, value=rng.randrange(256)), 0
        case number if number < 60:
            return child, _access(**access), 0
        case number:
            return (
                child,
                _access(**{"vp": 0, "port": _PORT, "size": 1, **({"write": 1} if number % 2 else {})}),
                0,
            )


@pytest.mark.parametrize("seed", range(12))
def test_any_packets_have_the_same_effect_with_the_fast_path_and_without(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two brokers get the same packets; replies, messages, registers and counters are compared after each, the flight
    recorder at the end."""
    rng = random.Random(seed)
    with brokers(2) as (fast, plain), socket.socket() as extra:
        _by_python_alone(plain)
        children = _set_up(fast, 1 + seed % 2)
        assert _set_up(plain, 1 + seed % 2) == children
        calls = dict.fromkeys((id(fast.broker.hypervisor), id(plain.broker.hypervisor)), 0)
        handle = Hypervisor.handle

        def counted(self: Hypervisor, *args: Any, **named: Any) -> Any:
            calls[id(self)] += 1
            return handle(self, *args, **named)

        monkeypatch.setattr(Hypervisor, "handle", counted)
        for step in range(_STEPS):
            if rng.random() < 0.9:
                taken = _take(fast)
                assert taken == _take(plain)
                if taken is not None and taken[3] and rng.random() < 0.9:
                    for world in (fast, plain):
                        world.root.end_of_message(0)
            who, packet, fds = _packet(rng, children, plain.broker._sockets._held)
            for world in (fast, plain):
                world.send(who, packet, [extra.fileno()] * fds)
            for partition in (1, *children):
                replies = [world.replies(partition) for world in (fast, plain)]
                assert replies[0] == replies[1], (seed, step, who, packet)
            assert _differ(_state(fast), _state(plain)) == {}, (seed, step, who, packet)
        assert _recorded(fast) == _recorded(plain)
        by_python, all_calls = calls.values()
        assert all_calls - by_python >= 10, "the fast path was hardly used"


def test_a_guest_that_asks_for_nothing_else_is_served_without_the_state_machine() -> None:
    with brokers(1) as (world,):
        (child,) = _set_up(world, 1)
        served: list[object] = []
        handle = world.broker.hypervisor.handle
        world.broker.hypervisor.handle = lambda *args: served.append(args[1]) or handle(*args)  # type: ignore[method-assign,func-returns-value]
        for value in range(100):
            world.send(child, _access(vp=0, port=_PORT, size=1))
            assert _take(world) is not None
            world.send(1, _result(child, value=value))
            assert world.replies(child) == [[0, {"value": value, "left": 0}, []]]
            assert world.replies(1) == [[0, {}, []]]
        assert served == [int(_C.ACCESS_PORT)]  # the first; from then on the VP is lent
        said = portrait(world.broker.hypervisor, world.broker.loop)
        made, counted = said["hypercalls"], said["system_calls"]
        assert isinstance(made, int)
        assert isinstance(counted, dict)
        assert counted["recvmsg"] >= made + 199  # each is looked at, and then taken


def test_a_guest_that_reads_no_replies_is_cut_off_and_its_parent_goes_on() -> None:
    with brokers(1) as (world,):
        (child,) = _set_up(world, 1)
        world.sockets[child].setblocking(False)
        ours = world.broker._sockets._sockets[child]
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
        for _ in range(2000):
            if child not in world.broker._sockets:
                break
            world.send(child, _access(vp=0, port=_PORT, size=1))
            assert _take(world) is not None
            world.send(1, _result(child))
            assert world.replies(1) == [[0, {}, []]]
        assert child not in world.broker._sockets
        world.send(1, [int(_C.GET_PARTITION_ID), {}])
        assert world.replies(1) == [[0, {"partition": 1}, []]]


@pytest.mark.parametrize(
    "change",
    [
        {"set": [[int(sint_register(0)), SINT_MASKED]]},
        {"set": [[int(_R.SCONTROL), 0]]},
        {"install": 0},
        {"install": 2},
    ],
)
def test_what_a_parent_changes_counts_for_the_very_next_access(change: dict[str, Any]) -> None:
    with brokers(2) as (fast, plain):
        _by_python_alone(plain)
        seen = []
        for world in (fast, plain):
            (child,) = _set_up(world, 1)
            for _ in range(3):
                world.send(child, _access(vp=0, port=_PORT, size=1))
                _take(world)
                world.send(1, _result(child, value=7))
            if "set" in change:
                world.send(1, [int(_C.SET_VP_REGISTERS), {"vp": 0, "registers": change["set"]}])
            else:
                wanted = {
                    "partition": child,
                    "access": 0,
                    "type": 0x11,
                    "parameter": _PORT | _LAST << 16,
                    "vp": 0,
                }
                world.send(1, [int(_C.INSTALL_INTERCEPT), wanted])
                if change["install"]:
                    world.send(1, [int(_C.INSTALL_INTERCEPT), wanted | {"access": change["install"]}])
            world.send(child, _access(vp=0, port=_PORT, size=1))
            seen.append(
                {"message": _take(world), "child": world.replies(child), "root": world.replies(1)}
                | _state(world)
            )
        assert _differ(*seen) == {}


def test_nobody_but_the_parent_answers() -> None:
    """A sibling and the guest itself are refused as ever, and the access is still there to be answered."""
    with brokers(1) as (world,):
        child, sibling = _set_up(world)
        for _ in range(2):
            world.send(child, _access(vp=0, port=_PORT, size=1))
            _take(world)
            world.send(1, _result(child, value=1))
        world.send(child, _access(vp=0, port=_PORT, size=1))
        world.replies(child)
        world.send(sibling, _result(child, value=9))
        assert [reply[0] for reply in world.replies(sibling)] != [HvStatus.SUCCESS]
        assert world.replies(child) == []
        world.send(1, _result(child, value=3))
        assert world.replies(child) == [[0, {"value": 3, "left": 0}, []]]


def test_a_parent_without_the_privilege_is_never_lent_anything() -> None:
    with brokers(1) as (world,):
        (child,) = _set_up(world, 1)
        world.send(child, _access(vp=0, port=_PORT, size=1))
        _take(world)
        root = world.machine.partitions[1]
        root.privileges &= ~Privilege.CREATE_PARTITIONS
        world.send(1, _result(child))
        assert [reply[0] for reply in world.replies(1)] == [HvStatus.ACCESS_DENIED]
        assert world.machine.partitions[child].vps[0].intercept.access is not None


def test_other_types_of_intercepts_are_python_s() -> None:
    with brokers(1) as (world,):
        (child,) = _set_up(world, 1)
        world.root.intercept_pages(child, 0xFE000, 1)
        world.send(child, [int(_C.ACCESS_MEMORY), {"vp": 0, "gpa": 0xFE00_0000, "size": 4}])
        assert _take(world) is not None
        world.send(1, _result(child, type=int(InterceptType.MMIO), value=5))
        assert world.replies(child) == [[0, {"value": 5, "left": 0}, []]]
