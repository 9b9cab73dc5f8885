"""What is said of an attack: made, refused or not, and what it cost the neighbour. Pure."""

import enum
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from runtime.attack.catalogue import Attack
from runtime.measure.paired_ratio import Interval, ratio_of

WITHIN: Final = 0.9  # of its pace without the attack: what a neighbour keeps


class Verdict(enum.StrEnum):
    CONTAINED = "contained"
    BREACH = "BREACH"  # something that must not be
    NOT_MADE = "NOT MADE"  # so nothing is known
    SLOWED = "SLOWED"  # contained, but at the neighbours' expense beyond WITHIN


@dataclass(frozen=True, slots=True)
class Window:
    """One that was attacked, and the quiet one beside it: the neighbour's exchanges a second in each."""

    attacked: float
    quiet: float


@dataclass(slots=True)
class Finding:
    """One attack on one service."""

    attack: Attack
    made: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    breaches: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    evidence: str = ""
    windows: list[Window] = field(default_factory=list)

    def take(self, answer: Mapping[str, Any]) -> None:
        """What the hostile guest says of one window."""
        self.made += int(answer["made"])
        self.outcomes.update(answer["outcomes"])
        self.breaches += answer["breaches"]
        self.evidence = str(answer["evidence"]) or self.evidence
        if answer["error"]:
            self.errors.append(str(answer["error"]))

    @property
    def unexpected(self) -> list[str]:
        return [outcome for outcome in self.outcomes if not self.attack.allows(outcome)]

    @property
    def ratio(self) -> Interval | None:
        """Of the neighbour's pace, attacked by quiet. None: nothing was measured."""
        return ratio_of_windows(self.windows)

    @property
    def verdict(self) -> Verdict:
        if self.breaches or self.unexpected:
            return Verdict.BREACH
        if not self.made:
            return Verdict.NOT_MADE
        return Verdict.SLOWED if is_slowed(self.ratio) else Verdict.CONTAINED


def ratio_of_windows(windows: Sequence[Window]) -> Interval | None:
    """A pair without a pace in its quiet half says nothing."""
    pairs = [window for window in windows if window.quiet > 0]
    if not pairs:
        return None
    return ratio_of([pair.attacked for pair in pairs], [pair.quiet for pair in pairs])


def is_slowed(ratio: Interval | None) -> bool:
    """Only what is certain: the whole interval lies below."""
    return ratio is not None and ratio.high < WITHIN


def pace_word(ratio: Interval | None) -> str:
    """Whether the neighbours kept WITHIN of their pace, as far as that can be said."""
    if ratio is None:
        return "not measured"
    if ratio.low >= WITHIN:
        return "held"
    return "SLOWED" if is_slowed(ratio) else "undecided"


def beside(ratio: Interval | None, other: Interval | None) -> Interval | None:
    """One ratio by another, which was measured in other windows of the same run: an interval of intervals, so a wide
    one. None: one of them is not known."""
    if ratio is None or other is None or not other.low > 0:
        return None
    return Interval(ratio.value / other.value, ratio.low / other.high, ratio.high / other.low)


@dataclass(slots=True)
class Control:
    """What is no attack, in windows like those of attacks."""

    name: str
    windows: list[Window] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    @property
    def ratio(self) -> Interval | None:
        return ratio_of_windows(self.windows)


@dataclass(frozen=True, slots=True)
class Report:
    """One service under one architecture."""

    service: str
    architecture: str
    seed: int
    seconds: float
    findings: tuple[Finding, ...]
    breaches: tuple[str, ...]  # of the machine as a whole: who died, whose data is wrong
    checked: str  # what was checked of the neighbour, in words
    controls: tuple[Control, ...] = ()
    failed: str = ""  # why it was not carried to its end: of us or of the host, and no word on the service

    @property
    def ratio(self) -> Interval | None:
        return ratio_of_windows([window for each in self.findings for window in each.windows])

    @property
    def ratio_beside_honest(self) -> Interval | None:
        """The pace under attack by that beside an honest guest of the same cap. Told, and no part of any verdict."""
        honest = next((each for each in self.controls if each.name == "honest"), None)
        return None if honest is None else beside(self.ratio, honest.ratio)

    @property
    def is_contained(self) -> bool:
        """Slowed neighbours are a failure where the service as a whole slowed them; a single attack's is told."""
        kept = all(each.verdict in (Verdict.CONTAINED, Verdict.SLOWED) for each in self.findings)
        return kept and not self.breaches and not self.failed and not is_slowed(self.ratio)

    def to_json(self) -> dict[str, Any]:
        ratio = self.ratio
        return {
            "service": self.service,
            "architecture": self.architecture,
            "seed": self.seed,
            "seconds": round(self.seconds, 1),
            "contained": self.is_contained,
            "failed": self.failed,
            "pace": pace_word(ratio),
            "ratio": _json_ratio(ratio),
            "ratio_beside_honest": _json_ratio(self.ratio_beside_honest),
            "breaches": list(self.breaches),
            "checked": self.checked,
            "pairs": sum(len(each.windows) for each in self.findings),
            "controls": {each.name: _json_ratio(each.ratio) for each in self.controls},
            "control_errors": [error for each in self.controls for error in each.errors],
            "attacks": [_json_of(each) for each in self.findings],
        }


def _json_ratio(ratio: Interval | None) -> dict[str, float | None] | None:
    return None if ratio is None else ratio.to_json()


def _json_of(finding: Finding) -> dict[str, Any]:
    return {
        "attack": finding.attack.name,
        "tries": finding.attack.tries,
        "proof": finding.attack.proof,
        "made": finding.made,
        "outcomes": dict(finding.outcomes),
        "evidence": finding.evidence,
        "breaches": finding.breaches + [f"unexpected: {each}" for each in finding.unexpected],
        "errors": finding.errors,
        "ratio": _json_ratio(finding.ratio),
        "verdict": str(finding.verdict),
    }
