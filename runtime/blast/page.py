"""A blast as one offline page: the matrix, waits, what happened in each cell, and the promises."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Final

from runtime.blast.campaign import Cell, Result
from runtime.blast.faults import MEANING
from runtime.blast.findings import NOTICED_MS
from runtime.blast.matrix import reasons, wait_text, what_it_did, who_died
from runtime.blast.promises import PROMISES, Promise, in_words
from runtime.drawing.bars import Bar, bar_chart
from runtime.drawing.markup import Markup, joined, tag
from runtime.drawing.page import page, section, swatches, table, tabs
from runtime.drawing.scales import log_scale_around, three_digits

_GAP: Final = " · "
_TARGET, _BYSTANDER = 1, 0  # colours
_STYLE: Final = Markup(
    """
.blast { table-layout: fixed; border-collapse: separate; border-spacing: 5px; margin: 6px 0 0; }
.blast th { border: 0; padding: 4px 6px; white-space: normal; vertical-align: bottom; }
.blast th.fault { width: 21%; font-weight: 600; color: var(--ink); vertical-align: top; }
.blast th.fault span { display: block; font-weight: 400; font-size: 12px; color: var(--soft); line-height: 1.35; }
.blast td { border: 0; border-radius: 8px; padding: 7px 9px; }
.blast td { background: color-mix(in srgb, var(--own) 15%, transparent); }
.blast td { border-left: 3px solid var(--own); line-height: 1.35; }
.blast td span { display: block; font-size: 12px; color: var(--soft); }
.blast td em { display: block; font-style: normal; font-size: 12px; font-weight: 600; color: var(--bad); }
.key { display: flex; flex-wrap: wrap; gap: 4px 18px; font-size: 13.5px; margin-top: 12px; }
.key i { display: inline-block; width: 12px; height: 12px; border-radius: 3px; margin-right: 7px; }
.key i { background: var(--own); }
.calm { --own: var(--good); } .own { --own: var(--c5); } .spread { --own: var(--c1); }
.gone { --own: var(--c3); } .wrong { --own: var(--bad); } .down { --own: var(--ink); }
"""
)
_KEY: Final = {
    "calm": "nobody died, nobody waited long",
    "own": "only who uses this driver noticed, and it came back",
    "spread": "others had to wait, too, and it came back",
    "gone": "no more answers for the driver's guests",
    "wrong": "wrong data",
    "down": "everything is dead, or stands still",
}


def severity(cell: Cell) -> str:
    """A key of _KEY: the worst that can be said."""
    if cell.machine_down or not any(trial.target.serves or trial.bystander.serves for trial in cell.struck):
        return "down"
    if cell.wrong(target=True) or cell.wrong(target=False):
        return "wrong"
    if not all(trial.target.serves for trial in cell.struck):
        return "gone"
    if any(trial.spread for trial in cell.struck):
        return "spread"
    if cell.dead or any((trial.target.back_ms or 0) > 0 for trial in cell.struck):
        return "own"
    return "calm"


def blast_page(result: Result) -> str:
    """The whole document."""
    plan = result.plan
    when = datetime.fromtimestamp(result.started_unix_ns / 1e9, UTC).strftime("%Y-%m-%d %H:%M UTC")
    parts = (
        plan.source,
        f"driver of {plan.target}",
        when,
        f"rounds {plan.rounds}",
        f"seed {plan.seed}",
        f"strikes after {plan.after} requests",
    )
    sections = [_matrix(result), _waits(result), _happened(result), _promises(result)]
    footer = (
        "Waits are the guests' own, read from the histories that they kept; wrong data was found by comparing these"
        " with each other and with the disk's image. Who died was read from the machine's events. On a busy host waits"
        " are longer than they had to be."
    )
    return page("partvisor blast", _GAP.join(parts), sections, footer)


def _matrix(result: Result) -> Markup:
    plan = result.plan
    heads = [
        tag("th", "the driver's fault", class_="fault"),
        *(tag("th", each.value) for each in plan.architectures),
    ]
    lines = [
        tag(
            "tr",
            tag("th", fault.value, tag("span", MEANING[fault]), class_="fault", scope="row"),
            [_cell(result.cell(fault, each)) for each in plan.architectures],
        )
        for fault in plan.faults
    ]
    key = tag("div", [tag("span", tag("i", class_=name), text) for name, text in _KEY.items()], class_="key")
    note = (
        "One disk's driver misbehaves, in the place that each architecture gives it. In a cell: who died, and the"
        " longest wait that a guest on this disk, and a bystander on another disk, had to endure."
    )
    body = tag("table", tag("thead", tag("tr", heads)), tag("tbody", lines), class_="blast")
    return section(
        "Who dies with a driver", note, tag("style", _STYLE), tag("div", body, class_="scroll"), key
    )


def _cell(cell: Cell) -> Markup:
    if len(cell.struck) < len(cell.trials) or not cell.trials:
        return tag("td", "did not happen")
    lines: list[Markup] = []
    if not cell.machine_down:
        target, bystander = cell.wait_ms(target=True), cell.wait_ms(target=False)
        both_for_ever = target is None and bystander is None
        lines.append(tag("span", "waits for ever" if target is None else f"waits {_ms(target)}"))
        lines.append(tag("span", "bystander, too" if both_for_ever else f"bystander {_ms(bystander)}"))
    for target, whose in ((True, "on this disk"), (False, "on the bystander's")):
        if count := sum(cell.wrong(target=target).values()):
            lines.append(tag("em", f"{count} wrong blocks {whose}"))
    if cell.unbounded:
        lines.append(tag("span", "nothing bounded it"))
    lines += [tag("em", "not as promised") for _ in cell.broken[:1]]
    died = {"all": "everything", "none": "nobody"}.get(who_died(cell), who_died(cell).replace("+", ", "))
    return tag(
        "td", tag("strong", died), lines, class_=severity(cell), title="\n".join(reasons(cell)) or None
    )


def _ms(wait_ms: float | None) -> str:
    return wait_text(wait_ms) + (" ms" if wait_ms is not None else "")


def _waits(result: Result) -> Markup:
    known = [
        wait
        for cell in result.cells
        for target in (True, False)
        if (wait := cell.wait_ms(target)) is not None and cell.struck
    ]
    note = (
        "The longest wait from the strike on: while a hung process is found out, a new one starts and replays what was"
        f" begun. Below {NOTICED_MS:.0f} ms it is what the host's load does anyway."
    )
    if not known:
        return section("Waits", note, tag("p", "Nobody ever got an answer again."))
    scale = log_scale_around(known)
    panels = {
        fault.value: bar_chart(
            [bar for each in result.plan.architectures for bar in _bars(result.cell(fault, each))],
            scale,
            three_digits,
            f"waits after {fault}, ms",
        )
        for fault in result.plan.faults
    }
    colours = swatches({"on the driver's disk": _TARGET, "the bystander": _BYSTANDER})
    return section("Waits, in ms", note, colours, tabs("waits", panels))


def _bars(cell: Cell) -> list[Bar]:
    found = []
    for target, colour, name in ((True, _TARGET, cell.architecture.value), (False, _BYSTANDER, "")):
        wait = cell.wait_ms(target) if cell.struck else None
        figure = "for ever" if wait is None else f"{three_digits(wait)} ms"
        found.append(Bar(name, wait, figure, colour, f"{cell.architecture}, {cell.fault}: {figure}"))
    return found


def _happened(result: Result) -> Markup:
    panels = {
        each.value: table(
            ("fault", "who died, and why", "back after", "what the driver got", "wrong data"),
            [_line(result.cell(fault, each)) for fault in result.plan.faults],
            words=5,
        )
        for each in result.plan.architectures
    }
    note = (
        "Back is when the last wait that stands out was over, counted from the strike; 0 if there was none. What the"
        " driver got is its own account, written behind the end of its disk, where it survives everybody."
    )
    return section("What happened", note, tabs("happened", panels))


def _line(cell: Cell) -> list[str]:
    wrong = []
    for target, whose in ((True, "this disk"), (False, "the bystander's")):
        if found := cell.wrong(target):
            wrong.append(f"{whose}: " + ", ".join(f"{count} {kind}" for kind, count in sorted(found.items())))
    died = reasons(cell)
    return [
        cell.fault.value,
        joined([tag("div", line) for line in died]) if died else "nobody",
        _ms(cell.back_ms()) if cell.struck else "?",
        what_it_did(cell) or "–",
        "; ".join(wrong) or "none",
    ]


def _promises(result: Result) -> Markup:
    panels = {}
    for each in result.plan.architectures:
        promised = PROMISES[each]
        lines = [
            [promise.value, words, _kept(result, promise, each.value)]
            for promise in Promise
            if (words := in_words(promised.get(promise, ()), result.plan.faults))
        ]
        panels[each.value] = table(("promise", "holds", "in this run"), lines, words=3)
    note = "What the documentation promises of each architecture. What does not stand here, nobody promises."
    troubles = [tag("ul", [tag("li", line) for line in result.troubles])] if result.troubles else []
    return section("Promises", note, tabs("promises", panels), *troubles)


def _kept(result: Result, promise: Promise, architecture: str) -> Markup:
    broken: Sequence[str] = [
        cell.fault.value
        for cell in result.cells
        if cell.architecture == architecture and promise in cell.broken
    ]
    if broken:
        return tag("span", "contradicted: " + ", ".join(broken), class_="slower")
    return tag("span", "kept", class_="faster")
