"""The catalogue as a page: `python -m runtime.chaos.faults.page > docs/faults.md`. A test holds the page to it."""

from collections.abc import Iterator
from typing import Final

from runtime.chaos.faults.catalogue import FAULTS
from runtime.chaos.faults.consequences import CONSEQUENCES
from runtime.chaos.faults.kinds import Carrier, FaultKind, Group, Parameter

_HEAD: Final = """# Faults

Everything that can be broken on purpose, by name; `partvisor faults` lists the same, `partvisor faults NAME` says more
of one. By hand on a running machine: `partvisor inject TARGET FAULT`, `partvisor heal`. In an experiment: `[[fault]]`,
see [the chaos lab](chaos.md#faults). This page is made from the catalogue: `python -m runtime.chaos.faults.page`.

```sh
partvisor inject root stop --for 2
partvisor inject disk0 storage-error errno=EIO --probability 10 --times 5
partvisor injected
partvisor heal
```

A fault has a **seam**, the place that is passed when it can strike. At each pass its knobs decide, with the names and
the meanings of Linux's fault injection: `space` (so many passes go by first), `interval` (only every n-th),
`probability` (in percent), `times` (at most so often; -1: no end). The decisions come from a seed: the same seed and
the same passes, the same strikes. What is armed can be healed at any time, and what can be undone then is; a fault
that kills has nothing left to undo.

**What it causes** is what is seen from where it was not made: by the guest, in the disk's image, in the events, in
/proc. Each row is shown on a machine that runs, by `tests/machine/test_every_fault.py`, which fails for a kind that has
no case there.

With nothing armed, a seam of the hypervisor's is one look at one flag. Measured in pairs, by processor time on a busy
two-core virtual machine, with the looks and with them cut out of the source: a call of 3.4 us takes 0.6 % longer in the
median (quartiles -2.5 to 4.1 %), a posted message of 7.5 us 0.04 % (-2.2 to 3.0 %). That is within the noise.

Who carries it out decides what a target is:

| carrier | who that is | target |
|---|---|---|
"""
_CHOICES_MAX: Final = 10  # that a row spells out
_CARRIERS: Final = {
    Carrier.PROCESS: ("the platform, from outside", "a partition, `root`, `hypervisor`"),
    Carrier.SERVER: ("an agent in the process that serves a device", "a device; of `kill-at-step` a process"),
    Carrier.STACK: ("the root's control plane", "a guest"),
    Carrier.HYPERVISOR: ("the hypervisor", "a partition; `*` for all where it only meets what passes anyway"),
    Carrier.GUEST: ("a hostile program in the target", "a guest"),
    Carrier.COMPOUND: ("those of its parts", "that of its parts"),
}
_TITLES: Final = {
    Group.PROCESS: "Processes",
    Group.RESOURCE: "Resources",
    Group.RING: "Rings",
    Group.MEMORY: "Memory",
    Group.INTERRUPT: "Interrupts",
    Group.MESSAGE: "Messages",
    Group.STORAGE: "Storage",
    Group.TIME: "Time",
    Group.AUTHORITY: "Authority",
    Group.COMPOUND: "Compounds",
}


def page() -> str:
    """The whole of docs/faults.md."""
    used = {kind.carrier for kind in FAULTS.values()}
    carriers = [f"| {one} | {who} | {what} |" for one, (who, what) in _CARRIERS.items() if one in used]
    lines = [_HEAD + "\n".join(carriers)]
    for group, title in _TITLES.items():
        kinds = [kind for kind in FAULTS.values() if kind.group is group]
        if kinds:
            lines += ["", f"## {title}", "", *_table(kinds)]
    return "\n".join(lines) + "\n"


def _table(kinds: list[FaultKind]) -> Iterator[str]:
    yield "| fault | what happens | what it causes | seam | parameters | carrier | needs |"
    yield "|---|---|---|---|---|---|---|"
    for kind in kinds:
        parameters = "<br>".join(_parameter(one) for one in kind.parameters) or "—"
        needs = ", ".join(f"`{need}`" if "=" in need else str(need) for need in kind.needs) or "—"
        causes = CONSEQUENCES[kind.name]
        yield (
            f"| `{kind.name}` | {kind.summary} | {causes} | {kind.seam} | {parameters} | {kind.carrier} | {needs} |"
        )


def _parameter(one: Parameter) -> str:
    default = str(one.default).lower() if isinstance(one.default, bool) else one.default
    meaning = f": {one.meaning}" if one.meaning else ""
    many = len(one.choices) > _CHOICES_MAX
    allowed = f"one of {len(one.choices)}, which `partvisor faults` lists" if many else one.allowed
    return f"`{one.name}={default}`{meaning} ({allowed})"


if __name__ == "__main__":
    print(page(), end="")
