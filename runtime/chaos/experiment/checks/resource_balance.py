"""Afterwards there is as much of everything as before: processes, descriptors, memory; and nothing is left behind."""

from collections.abc import Mapping
from typing import Final

from runtime.chaos.experiment.evidence import Evidence
from runtime.chaos.experiment.journal import Finding, Outcome
from runtime.chaos.faults.kinds import Parameter, Value

_MIB: Final = 1 << 20


class ResourceBalance:
    """Two counts under load, one before the first fault and one after the last was healed; and the end."""

    name = "resources"
    meaning = "as many processes, descriptors and bytes as before, and nothing left behind"
    parameters = (
        Parameter("descriptors", 16, "so many more are allowed, over all processes", "", 0, 100_000),
        Parameter("memory_mib", 64, "so much more is allowed, over all processes", "MiB", 0, 1 << 20),
        Parameter("processes", 0, "so many fewer or more are allowed", "", 0, 1024),
    )

    def judge(self, evidence: Evidence, parameters: Mapping[str, Value]) -> Finding:
        before, after = evidence.before, evidence.after
        texts = [f"left behind: {left}" for left in evidence.left_behind]
        figures: dict[str, float] = {"left_behind": float(len(evidence.left_behind))}
        if after is not None and before.processes:
            processes = after.processes - before.processes
            descriptors = after.descriptors - before.descriptors
            mib = (after.resident_bytes - before.resident_bytes) / _MIB
            figures |= {"processes": processes, "descriptors": descriptors, "memory_mib": round(mib, 1)}
            if abs(processes) > int(parameters["processes"]) and not _load_had_ended(evidence):
                texts.append(f"{after.processes} processes, {before.processes} before")
            if descriptors > int(parameters["descriptors"]):
                texts.append(f"{after.descriptors} descriptors, {before.descriptors} before")
            if mib > float(parameters["memory_mib"]):
                texts.append(f"{mib:.0f} MiB more than before")
        if texts:
            return Finding(self.name, Outcome.VIOLATED, tuple(texts), figures)
        if after is None:
            text = "the machine had ended before it could be counted again"
            return Finding(self.name, Outcome.INCONCLUSIVE, (text,), figures)
        return Finding(self.name, Outcome.PASSED, (), figures)


def _load_had_ended(evidence: Evidence) -> bool:
    """Guests that have ended take their processes with them, and rightly so."""
    return bool(evidence.all_of("partition.exited"))
