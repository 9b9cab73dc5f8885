"""What `partvisor attack` prints of each service under each architecture, and of all at the end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from runtime.reports import print_table

if TYPE_CHECKING:
    from runtime.attack.findings import Report
    from runtime.measure.paired_ratio import Interval

LEGEND: Final = (
    "pace: the neighbours' exchanges a second while attacked, by that in the quiet window beside it: median of the"
    " pairs, and where it lies with 95 %; controls: the same of windows in which the hostile guest stands still, burns"
    " the share that it may have, or works honestly as fast as its cap lets it"
)


def print_report(report: Report) -> None:
    from runtime.attack.findings import pace_word

    rows: list[dict[str, Any]] = [
        {
            "service": report.service,
            "attack": finding.attack.name,
            "made": finding.made,
            "refused_as": ", ".join(f"{name} {count}" for name, count in finding.outcomes.most_common(3)),
            "pace": _pace(finding.ratio),
            "verdict": str(finding.verdict),
        }
        for finding in report.findings
    ]
    print(f"\n{report.service}, {report.architecture}, seed {report.seed}, {report.seconds:.0f} s")
    print_table(rows, "nothing was attacked")
    for finding in report.findings:
        for text in [
            *finding.breaches,
            *(f"not foreseen: {each}" for each in finding.unexpected),
            *finding.errors,
        ]:
            print(f"  {finding.attack.name}: {text}")
    for breach in report.breaches:
        print(f"  BREACH: {breach}")
    if report.failed:
        print(
            f"FAILED: {report.failed}; its neighbours were not looked at, so nothing is known of them",
            flush=True,
        )
        return
    print(
        f"{_word(report)}; neighbours: {report.checked}; pace {_pace(report.ratio)}: {pace_word(report.ratio)}"
    )
    controls = ", ".join(f"{each.name} {_pace(each.ratio)}" for each in report.controls)
    for error in sorted({error for each in report.controls for error in each.errors}):
        print(f"  control {error}")
    beside = _pace(report.ratio_beside_honest)
    print(f"controls: {controls}; attacked by honest {beside}", flush=True)


def print_end(reports: Sequence[Report]) -> None:
    """All of them once more, a line each, where there are several; and how to read the figures."""
    from runtime.attack.findings import pace_word

    if len(reports) > 1:
        print()
        rows = [
            {
                "service": report.service,
                "architecture": report.architecture,
                "attacks": len(report.findings),
                "made": sum(finding.made for finding in report.findings),
                "pace": _pace(report.ratio),
                "neighbours": pace_word(report.ratio),
                "verdict": _word(report),
            }
            for report in reports
        ]
        print_table(rows, "nothing was attacked")
    print(f"\n{LEGEND}")


def _word(report: Report) -> str:
    if report.failed:
        return "FAILED"
    return "contained" if report.is_contained else "NOT CONTAINED"


def _pace(ratio: Interval | None) -> str:
    if ratio is None:
        return "-"
    from math import isfinite

    known = f" [{ratio.low:.2f} to {ratio.high:.2f}]" if isfinite(ratio.low) else ""
    return f"{ratio.value:.2f}{known}"
