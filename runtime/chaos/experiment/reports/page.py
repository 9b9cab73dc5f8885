"""A campaign as one offline page: verdicts, what became of each fault, and pictures of the trials worth looking at."""

from collections.abc import Sequence
from typing import Any, Final

from runtime.chaos.experiment.campaign import statistics
from runtime.chaos.experiment.journal import Header, Outcome, Trial
from runtime.chaos.experiment.model import Statistic
from runtime.chaos.experiment.reports.trial_picture import trial_picture
from runtime.chaos.experiment.tally import by_architecture, by_check, by_fault, complaints
from runtime.drawing.bars import Bar, bar_chart
from runtime.drawing.markup import Markup, joined, tag
from runtime.drawing.page import facts, page, section, table, tabs
from runtime.drawing.scales import log_scale_around, three_digits

PICTURES_MAX: Final = 12
COMPLAINTS_MAX: Final = 50


def campaign_page(header: Header, trials: Sequence[Trial], shrunk: Sequence[Trial] = ()) -> str:
    """The whole document. `shrunk`: trials of a journal that `partvisor chaos shrink` wrote of this one."""
    settings = header.experiment.get("experiment", {})
    name = str(settings.get("name", "chaos"))
    worst = Outcome.worst(trial.outcome for trial in trials) if trials else Outcome.INCONCLUSIVE
    subtitle = f"{worst.value}: {len(trials)} trials, seeds from {header.seed}"
    sections = [
        _verdict(settings, trials),
        _faults(trials, header.left_out),
        _architectures(trials),
        _pictures(
            "Shrunk", "What was left after everything that the failure does not need was left out.", shrunk
        ),
        _pictures("Trials", _PICTURES_NOTE, worth_a_look(trials)),
        section("Conditions", "", facts(dict(header.versions) | {"file": header.source})),
    ]
    footer = "Times are milliseconds since the steady state. Waits are as the guests saw them."
    return page(f"partvisor chaos: {name}", subtitle, [one for one in sections if one is not None], footer)


_PICTURES_NOTE: Final = (
    "The violated ones first, then those with the longest wait. A diamond is an instant: red when the fault struck,"
    " grey when the machine noticed, green when a guest had its next answer."
)


def worth_a_look(trials: Sequence[Trial]) -> list[Trial]:
    """PICTURES_MAX at the most."""
    order = [Outcome.VIOLATED, Outcome.INCONCLUSIVE, Outcome.PASSED]
    ranked = sorted(
        trials,
        key=lambda trial: (order.index(trial.outcome), -max(trial.outages_ms, default=0.0), trial.number),
    )
    return ranked[:PICTURES_MAX]


def _verdict(settings: dict[str, Any], trials: Sequence[Trial]) -> Markup:
    figures = statistics(list(trials))
    known = {
        "outage p50": figures.get(Statistic.OUTAGE_P50_MS),
        "outage p99": figures.get(Statistic.OUTAGE_P99_MS),
        "longest outage": figures.get(Statistic.OUTAGE_MAX_MS),
    }
    counts = {outcome.value: str(sum(trial.outcome is outcome for trial in trials)) for outcome in Outcome}
    times = {name: f"{three_digits(value)} ms" for name, value in known.items() if value is not None}
    lines = complaints(trials, COMPLAINTS_MAX)
    why = [tag("h3", "Why not all is green"), tag("ul", [tag("li", line) for line in lines])] if lines else []
    content = joined(facts(counts | times), _table(by_check(trials)), why)
    return section("Verdict", str(settings.get("description", "")), content)


def _faults(trials: Sequence[Trial], left_out: Sequence[str]) -> Markup:
    tallies = by_fault(trials)
    note = (
        "Injected, struck, noticed by the machine; then: its guests went on and every check was content, a check of its"
        " trial was violated, or no request completed any more. Times are from the strike to the next answer."
    )
    if left_out:
        note += f" Cannot be simulated, left out of every trial: {', '.join(left_out)}."
    bars = []
    for tally in tallies:
        row = tally.row()
        p50, p99 = row["p50 ms"], row["p99 ms"]
        figure = "never" if p50 is None else f"{three_digits(p50)} ms, p99 {three_digits(p99)}"
        bars.append(Bar(tally.kind, p50, figure, 0, f"{tally.fired} strikes", p99))
    values = [value for tally in tallies for value in tally.recovery_ms]
    chart = (
        bar_chart(bars, log_scale_around(values), three_digits, "time to the next answer, ms")
        if values
        else None
    )
    return section("Faults", note, joined(_table([tally.row() for tally in tallies]), chart))


def _architectures(trials: Sequence[Trial]) -> Markup | None:
    rows = by_architecture(trials)
    if len(rows) < 2:
        return None
    note = "The same seeds, faults and load under each: what died, how long guests waited, what was wrong."
    return section("Architectures", note, joined(_table(rows)))


def _pictures(title: str, note: str, trials: Sequence[Trial]) -> Markup | None:
    if not trials:
        return None
    panels: dict[str, str] = {}
    for trial in trials:
        where = f", {trial.architecture}" if trial.architecture else ""
        words = [
            tag(
                "p", f"{trial.outcome.value}{where}, seed {trial.seed}, {trial.seconds:.1f} s", class_="soft"
            ),
            tag("ul", [tag("li", line) for line in complaints([trial], COMPLAINTS_MAX)]),
        ]
        panels[f"{trial.number}{where}"] = joined(words, trial_picture(trial))
    return section(title, note, tabs(title.lower(), panels))


def _table(rows: Sequence[dict[str, Any]]) -> Markup | None:
    if not rows:
        return None
    heads = list(rows[0])
    cells = [["-" if row[head] is None else f"{row[head]}" for head in heads] for row in rows]
    return table(heads, cells)
