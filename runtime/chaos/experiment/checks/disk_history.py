"""Nothing acknowledged was lost, torn, invented or put elsewhere: runtime.chaos.checker, disk by disk."""

from collections.abc import Mapping
from typing import Final

from runtime.chaos.checker import CheckError, Cut, check
from runtime.chaos.experiment.evidence import Evidence
from runtime.chaos.experiment.journal import Finding, Outcome
from runtime.chaos.faults.kinds import Parameter, Value
from runtime.chaos.register_conflicts import Kind

_KILLS: Final = frozenset({"kill", "fault-signal"})
_ENDS_THE_MACHINE: Final = frozenset({"hypervisor", "platform"})


class DiskHistory:
    """Of every disk that verifying guests have used."""

    name = "history"
    meaning = "no acknowledged request lost, torn, invented or misdirected, and the image agrees"
    parameters = (
        Parameter("bound_s", 30, "in which every request must complete", "s", 1, 3600),
        Parameter("power", False, "what was not flushed may be gone: a fault cut the disk's power"),
    )

    def judge(self, evidence: Evidence, parameters: Mapping[str, Value]) -> Finding:
        texts: list[str] = []
        outcomes: list[Outcome] = []
        figures = {"operations": 0.0, "values": 0.0, "failed": 0.0, "unfinished": 0.0}
        figures |= {f"violations {kind.value}": 0.0 for kind in Kind}
        killed = _killed(evidence)
        cuts = [Cut(evidence.ended_ns, bool(parameters["power"]))] if _was_cut(evidence) else []
        for device in sorted({guest.device for guest in evidence.machine.guests}):
            guests = evidence.machine.guests_on(device)
            histories = [
                evidence.histories[guest.name] for guest in guests if guest.name in evidence.histories
            ]
            try:
                verdict = check(
                    histories,
                    bound_s=float(parameters["bound_s"]),
                    cuts=cuts,
                    killed={guest.seed for guest in guests if guest.name in killed},
                    image=evidence.values.get(device) or None,
                )
            except CheckError as error:
                return Finding(self.name, Outcome.INCONCLUSIVE, (f"{device}: {error}",), figures)
            outcomes.append(Outcome(verdict.judgement.value.replace("failed", "violated")))
            texts += [f"{device}: {violation.text}" for violation in verdict.violations]
            for name in ("operations", "values", "failed", "unfinished"):
                figures[name] += getattr(verdict, name)
            for kind, count in verdict.counts.items():
                figures[f"violations {kind.value}"] += count
        if not outcomes:
            return Finding(self.name, Outcome.INCONCLUSIVE, ("no guest verifies a disk",), figures)
        return Finding(self.name, Outcome.worst(outcomes), tuple(texts), figures)


def _killed(evidence: Evidence) -> set[str]:
    fired = {fate.number for fate in evidence.fates if fate.fired}
    return {
        injection.order.target
        for injection in evidence.schedule
        if injection.order.kind in _KILLS and injection.order.number in fired
    }


def _was_cut(evidence: Evidence) -> bool:
    """A fault has ended the whole machine."""
    if _killed(evidence) & _ENDS_THE_MACHINE:
        return True
    return any(event["fields"].get("failed") for event in evidence.all_of("machine.ending"))
