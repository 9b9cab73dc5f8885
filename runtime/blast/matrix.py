"""The matrix in words: a cell for each fault and architecture, and the sentences below."""

from typing import Any, Final

from runtime.blast.campaign import Cell, Result
from runtime.blast.faults import MEANING

LEGEND: Final = """\
who died, or "none"; then the longest wait, in ms, of a guest on the driver's disk / of the bystander on another disk.
"never": there was no answer any more. wrong: blocks of wrong data on the driver's disk; WRONG: on the bystander's.
*: only the experiment's own bound stopped it. !: contradicts what docs/isolation.md promises. ?: did not happen."""
_NEVER: Final = "never"


def cell_text(cell: Cell) -> str:
    """ "driver 21/2", "all" """
    if len(cell.struck) < len(cell.trials) or not cell.trials:
        return "?"
    marks = ("*" if cell.unbounded else "") + ("!" if cell.broken else "")
    return " ".join([f"{who_died(cell)}{marks}", *_waits(cell), *_wrong(cell)])


def who_died(cell: Cell) -> str:
    if cell.machine_down:
        return "all"
    return "+".join(cell.dead) or "none"


def _waits(cell: Cell) -> list[str]:
    if cell.machine_down:
        return []
    return [f"{wait_text(cell.wait_ms(target=True))}/{wait_text(cell.wait_ms(target=False))}"]


def wait_text(wait_ms: float | None) -> str:
    return _NEVER if wait_ms is None else f"{wait_ms:.0f}"


def _wrong(cell: Cell) -> list[str]:
    found = []
    for target, word in ((True, "wrong"), (False, "WRONG")):
        if count := sum(cell.wrong(target=target).values()):
            found.append(f"{word} {count}")
    return found


def rows(result: Result) -> list[dict[str, Any]]:
    """For `print_table`."""
    plan = result.plan
    return [
        {"fault": fault.value}
        | {each.value: cell_text(result.cell(fault, each)) for each in plan.architectures}
        for fault in plan.faults
    ]


def sentences(result: Result) -> list[str]:
    """What the matrix has no room for."""
    found = [f"{fault}: the driver {MEANING[fault]}" for fault in result.plan.faults]
    found += [""] + [f"! {line}" for line in result.contradictions] if result.contradictions else []
    found += [""] + [f"? {line}" for line in result.troubles] if result.troubles else []
    return found


def what_it_did(cell: Cell) -> str:
    """In the driver's own words; "": it did not live to tell, or there is nothing to add."""
    for trial in cell.struck:
        assert trial.struck is not None
        if trial.struck.did:
            return ", ".join(_amount(key, value) for key, value in trial.struck.did.items())
    return ""


def _amount(key: str, value: object) -> str:
    name = key.replace("_", " ")
    return f"{value:,} {name}" if isinstance(value, int) else f"{name} {value}"


def reasons(cell: Cell) -> list[str]:
    """Why who died, each once."""
    found = [trial.machine_down for trial in cell.struck if trial.machine_down]
    found += [f"{death.role}: {death.reason}" for trial in cell.struck for death in trial.deaths]
    return list(dict.fromkeys(found))
