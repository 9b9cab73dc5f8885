"""What docs/isolation.md promises of each architecture, as data, and whether a trial keeps to it. No I/O."""

import enum
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Final

from runtime.blast.faults import HONEST, Fault
from runtime.blast.findings import Trial
from runtime.config.architecture import Architecture


class Promise(enum.StrEnum):
    """In the words of the docs' table."""

    NOTHING_LEFT = "nothing is left of the machine when it has ended"
    HYPERVISOR_LIVES = "the hypervisor lives"
    ROOT_LIVES = "the root lives"
    GUESTS_LIVE = "no guest's process dies"
    OTHER_DRIVERS_LIVE = "no other driver dies"
    BYSTANDER_DATA = "the bystander's data is right"
    BYSTANDER_GOES_ON = "the bystander goes on"
    TARGET_DATA = "the target's data is right"
    TARGET_COMES_BACK = "the target's guest goes on in the end"


_KEPT: Final[Mapping[Promise, Callable[[Trial], bool]]] = {
    Promise.NOTHING_LEFT: lambda trial: not trial.left_behind,
    Promise.HYPERVISOR_LIVES: lambda trial: not trial.machine_down and "hypervisor" not in trial.dead,
    Promise.ROOT_LIVES: lambda trial: not trial.machine_down and "root" not in trial.dead,
    Promise.GUESTS_LIVE: lambda trial: (
        not trial.machine_down and "guest" not in trial.dead and "bystander" not in trial.dead
    ),
    Promise.OTHER_DRIVERS_LIVE: lambda trial: (
        not trial.machine_down and "other driver" not in trial.dead and "other monitor" not in trial.dead
    ),
    Promise.BYSTANDER_DATA: lambda trial: not trial.bystander.wrong_blocks,
    Promise.BYSTANDER_GOES_ON: lambda trial: trial.bystander.serves,
    Promise.TARGET_DATA: lambda trial: not trial.target.wrong_blocks,
    Promise.TARGET_COMES_BACK: lambda trial: trial.target.serves,
}
assert set(_KEPT) == set(Promise)

_ALL: Final = frozenset(Fault)
_REPLACED: Final = frozenset({Fault.CRASH, Fault.HANG, Fault.BUSY_LOOP})  # a new one takes over
_HARMLESS: Final = frozenset({Fault.FORK_BOMB, Fault.DOUBLE_REPLIES})
_IN_ITS_BOUNDS: Final = _ALL - {Fault.WILD_WRITE}
_OWN_PROCESS: Final[Mapping[Promise, frozenset[Fault]]] = {
    Promise.NOTHING_LEFT: _ALL,
    Promise.HYPERVISOR_LIVES: _ALL,
    Promise.ROOT_LIVES: _ALL,
    Promise.GUESTS_LIVE: _ALL,
    Promise.OTHER_DRIVERS_LIVE: _ALL,
    Promise.BYSTANDER_DATA: _ALL,
    Promise.BYSTANDER_GOES_ON: _ALL,
    Promise.TARGET_DATA: HONEST,
    Promise.TARGET_COMES_BACK: _REPLACED | _HARMLESS | {Fault.MEMORY_LEAK, Fault.FD_EXHAUSTION},
}
PROMISES: Final[Mapping[Architecture, Mapping[Promise, frozenset[Fault]]]] = {
    Architecture.DISAGGREGATED: _OWN_PROCESS,
    Architecture.HOSTED: _OWN_PROCESS,
    Architecture.MICROKERNEL: _OWN_PROCESS,
    Architecture.MICROKERNELIZED: {
        Promise.NOTHING_LEFT: _ALL,
        Promise.HYPERVISOR_LIVES: _IN_ITS_BOUNDS,  # a wild write may spoil the state that the next root goes on from
        Promise.GUESTS_LIVE: _IN_ITS_BOUNDS,
        Promise.BYSTANDER_DATA: _IN_ITS_BOUNDS,
        Promise.BYSTANDER_GOES_ON: _IN_ITS_BOUNDS,
        Promise.TARGET_DATA: HONEST,
        Promise.TARGET_COMES_BACK: _REPLACED | _HARMLESS,
    },
    Architecture.MONOLITHIC: {
        Promise.NOTHING_LEFT: _ALL,
        Promise.BYSTANDER_DATA: _IN_ITS_BOUNDS,
        Promise.TARGET_DATA: HONEST,
    },
}
"""Architecture -> promise -> the faults for which it holds. What does not stand here nobody promises."""
assert set(PROMISES) == set(Architecture)


def in_words(faults: Collection[Fault], among: Sequence[Fault] = tuple(Fault)) -> str:
    """For which of `among` something is promised: "always", "not for wild-write", "for crash, hang"; "" for none."""
    held = [fault for fault in among if fault in faults]
    rest = [fault for fault in among if fault not in faults]
    if not rest or not held:
        return "always" if held else ""
    return "not for " + ", ".join(rest) if len(rest) < len(held) else "for " + ", ".join(held)


def broken(trial: Trial) -> tuple[Promise, ...]:
    """What the trial contradicts. A trial whose driver did not strike contradicts nothing, and shows nothing."""
    if trial.struck is None:
        return ()
    promised = PROMISES[trial.architecture]
    return tuple(
        promise for promise, faults in promised.items() if trial.fault in faults and not _KEPT[promise](trial)
    )
