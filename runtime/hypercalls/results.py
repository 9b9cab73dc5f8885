"""What hypercalls return, where that is more than a number. Descriptors belong to the caller, who closes them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from runtime.abi import HypervisorGone, MapFlags, Route
from runtime.hypercalls.connection import Result, closing_on_error, expect


@dataclass(frozen=True, slots=True)
class VpLines:
    """What a VP's thread needs: two SynIC pages (memfds of one page) and its interrupt line (an eventfd)."""

    vp: int
    sim_fd: int
    sief_fd: int
    line_fd: int


@dataclass(frozen=True, slots=True)
class Birth:
    """What this partition was born with. `files` is empty from the second call on."""

    partition: int
    name: str
    program: str  # module
    args: Mapping[str, object]
    vps: list[VpLines]
    files: list[int]


@dataclass(frozen=True, slots=True)
class MappedSlot:
    """One slot in the target's GPA space."""

    gpfn: int
    source_gpfn: int  # where the source has it; equal to gpfn for new pages
    pages: int
    flags: MapFlags
    fd: int  # memfd of exactly these pages; -1: mapped into another partition, which claims it itself


@dataclass(frozen=True, slots=True)
class Doorbell:
    """An eventfd. A port's owner reads it; a connection's owner adds 1 to it."""

    fd: int
    route: Route


@dataclass(frozen=True, slots=True)
class PortCounts:
    """sent = merged + suppressed + delivered + pending. By the direct route nothing is sent through us."""

    sent: int
    merged: int  # shared an interrupt that the receiver had not looked at yet
    suppressed: int  # no interrupt: its SINT is masked or polled
    delivered: int
    pending: int  # messages that wait for a slot


@dataclass(frozen=True, slots=True)
class MemoryBalance:
    available_pages: int
    in_use_pages: int


@dataclass(frozen=True, slots=True)
class Program:
    """What a partition runs, as its creator reads it back."""

    module: str
    name: str
    args: Mapping[str, object]
    files: int  # not handed over yet


# Each raises HypervisorGone for a reply of another shape.


def decode_birth(result: Result) -> Birth:
    values, fds = result.values, result.fds
    with closing_on_error(fds):
        indexes = [expect(vp, int) for vp in expect(values["vps"], list)]
        if len(fds) != 3 * len(indexes) + expect(values["files"], int):
            raise HypervisorGone("the birth's descriptors do not match it")
        return Birth(
            partition=result.integer("partition"),
            name=expect(values["name"], str),
            program=expect(values["program"], str),
            args=expect(values["args"], dict),
            vps=[VpLines(vp, *fds[3 * place : 3 * place + 3]) for place, vp in enumerate(indexes)],
            files=fds[3 * len(indexes) :],
        )


def decode_program(result: Result) -> Program:
    value = expect(result.values["value"], dict)
    return Program(
        expect(value["module"], str),
        expect(value["name"], str),
        expect(value["args"], dict),
        expect(value["files"], int),
    )


def decode_times(result: Result) -> dict[int, int]:
    value = expect(result.values["value"], dict)
    try:
        return {int(each): expect(ns, int) for each, ns in value.items()}
    except ValueError:
        raise HypervisorGone("a time of no partition") from None


def decode_slots(result: Result) -> list[MappedSlot]:
    with closing_on_error(result.fds):
        slots = expect(result.values["slots"], list)
        fds = result.fds or [-1] * len(slots)
        return [
            MappedSlot(slot["gpfn"], slot["source_gpfn"], slot["pages"], MapFlags(slot["flags"]), fd)
            for slot, fd in zip(slots, fds, strict=True)
        ]


def decode_doorbell(result: Result) -> Doorbell:
    return Doorbell(result.one_fd(), Route(result.integer("route")))
