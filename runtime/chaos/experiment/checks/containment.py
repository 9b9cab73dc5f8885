"""Whom no fault was aimed at: do they see errors, ends, or long waits?"""

from collections.abc import Mapping, Sequence

from runtime.chaos.experiment.evidence import NS_PER_MS, Evidence
from runtime.chaos.experiment.journal import Finding, Outcome
from runtime.chaos.faults.kinds import Parameter, Value
from runtime.chaos.history import History
from runtime.chaos.history import Outcome as Answer
from runtime.chaos.liveness import gaps


class Containment:
    """Bystanders: verifying guests that are no fault's target, and use no device that is."""

    name = "containment"
    meaning = "guests that no fault was aimed at see no error, no end, and no long wait"
    parameters = (
        Parameter("wait_ms", 1_000, "the longest wait that a bystander may see", "ms", 1, 3_600_000),
        Parameter(
            "p99_factor", 0.0, "its p99 under faults, at most so many times that before; 0: any", "", 0, 1e6
        ),
    )

    def judge(self, evidence: Evidence, parameters: Mapping[str, Value]) -> Finding:
        targets = {injection.order.target for injection in evidence.schedule}
        bystanders = [
            guest
            for guest in evidence.machine.guests
            if not targets & {guest.name, guest.device} and guest.name in evidence.histories
        ]
        if not bystanders:
            return Finding(self.name, Outcome.INCONCLUSIVE, ("every guest was a target, or used one",))
        texts: list[str] = []
        figures: dict[str, float] = {}
        for guest in bystanders:
            history = evidence.histories[guest.name]
            texts += self._complaints(evidence, guest.name, history, parameters, figures)
        return Finding(self.name, Outcome.VIOLATED if texts else Outcome.PASSED, tuple(texts), figures)

    def _complaints(
        self,
        evidence: Evidence,
        name: str,
        history: History,
        parameters: Mapping[str, Value],
        figures: dict[str, float],
    ) -> list[str]:
        texts = []
        failed = sum(operation.outcome is Answer.FAILED for operation in history.operations)
        if failed:
            texts.append(f"{name}: {failed} of its requests failed")
        texts += [
            f"{name}: ended, {event['fields']['reason']}"
            for event in evidence.all_of("partition.exited")
            if event["partition"] == name and event["monotonic_ns"] < evidence.healed_ns
        ]
        longest = max(
            (gap.length_ns / NS_PER_MS for gap in gaps(history) if gap.end_ns > evidence.began_ns),
            default=0.0,
        )
        figures[f"{name} longest_wait_ms"] = longest
        if longest > float(parameters["wait_ms"]):
            texts.append(f"{name}: waited {longest:.0f} ms for an answer")
        before, under = (
            _p99(history, 0, evidence.began_ns),
            _p99(history, evidence.began_ns, evidence.healed_ns),
        )
        if before and under:
            figures[f"{name} p99_factor"] = under / before
            allowed = float(parameters["p99_factor"])
            if allowed and under > allowed * before:
                texts.append(f"{name}: p99 {under:.2f} ms under faults, {before:.2f} ms before")
        return texts


def _p99(history: History, since_ns: int, until_ns: int) -> float:
    """In ms, of what was asked in that time; 0: nothing was."""
    took: Sequence[float] = sorted(
        (operation.completed_ns - operation.invoked_ns) / NS_PER_MS
        for operation in history.operations
        if operation.completed_ns is not None and since_ns <= operation.invoked_ns < until_ns
    )
    return took[min(len(took) * 99 // 100, len(took) - 1)] if took else 0.0
