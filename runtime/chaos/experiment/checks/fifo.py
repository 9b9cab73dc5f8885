"""What comes out of a channel is what went in: every answer belongs to a request, once, in order, bytes intact."""

from collections import Counter
from collections.abc import Mapping
from typing import Final

from runtime.chaos.experiment.evidence import Evidence
from runtime.chaos.experiment.journal import Finding, Outcome
from runtime.chaos.faults.kinds import Value
from runtime.chaos.sequence import Ending, Received, Sequence

# After one of these a successor serves again what its predecessor had perhaps answered.
_DEATHS: Final = frozenset({"root.exited", "root.hung", "root.stuck", "driver.exited", "partition.exited"})
_TEXTS_MAX: Final = 10  # of one guest


class Fifo:
    """Of every guest that runs partitions.guests.sequenced."""

    name = "fifo"
    meaning = "every answer on a channel belongs to a request, comes once, in order, with its bytes intact"
    parameters = ()

    def judge(self, evidence: Evidence, parameters: Mapping[str, Value]) -> Finding:
        deaths = sorted(
            int(event["fields"].get("at_ns") or event["monotonic_ns"])
            for event in evidence.events
            if event["kind"] in _DEATHS
        )
        texts: list[str] = []
        figures: Counter[str] = Counter(
            {"sent": 0, "answered": 0, "repeated": 0, "unanswered": 0, "refused": 0}
        )
        for name, sequence in sorted(evidence.sequences.items()):
            found = _complaints(sequence, deaths, figures)
            texts += [f"{name}: {text}" for text in found[:_TEXTS_MAX]]
            if len(found) > _TEXTS_MAX:
                texts.append(f"{name}: and {len(found) - _TEXTS_MAX} more of that kind")
        said = {name: float(count) for name, count in figures.items()}
        if texts:
            return Finding(self.name, Outcome.VIOLATED, tuple(texts), said)
        if not figures["answered"]:
            return Finding(self.name, Outcome.INCONCLUSIVE, ("no numbered message was answered",), said)
        return Finding(self.name, Outcome.PASSED, (), said)


def _complaints(sequence: Sequence, deaths: list[int], figures: Counter[str]) -> list[str]:
    """Every breach, in the order in which the guest saw them."""
    texts: list[str] = []
    answered: set[int] = set()
    latest = 0  # number of the last first answer
    for answer in sequence.received:
        number = answer.number
        if not 0 < number <= len(sequence.sent) or sequence.sent[number - 1].at_ns > answer.at_ns:
            texts.append(f"an answer to {number}, which was never sent")
            continue
        if not answer.is_refusal and not _is_intact(sequence, answer):
            texts.append(f"the answer to {number} has other bytes{_whose(sequence, answer)}")
        if number in answered:
            figures["repeated"] += 1
            if not any(sequence.sent[number - 1].at_ns < death <= answer.at_ns for death in deaths):
                texts.append(f"{number} was answered twice, and no server had died in between")
            continue
        answered.add(number)
        figures["refused"] += answer.is_refusal
        if number < latest:
            texts.append(f"the answer to {number} came behind that to {latest}")
        latest = max(latest, number)
    missing = len(sequence.sent) - len(answered)
    figures["sent"] += len(sequence.sent)
    figures["answered"] += len(answered)
    figures["unanswered"] += missing
    if missing and sequence.ending in (Ending.FINISHED, Ending.GAVE_UP):
        texts.append(f"{missing} of {len(sequence.sent)} were never answered")
    return texts


def _is_intact(sequence: Sequence, answer: Received) -> bool:
    sent = sequence.sent[answer.number - 1]
    return (sent.length, sent.digest) == (answer.length, answer.digest)


def _whose(sequence: Sequence, answer: Received) -> str:
    for sent in sequence.sent:
        if (sent.length, sent.digest) == (answer.length, answer.digest):
            return f": those of {sent.number}"
    return f": {answer.length} of them, where {sequence.sent[answer.number - 1].length} were sent"
