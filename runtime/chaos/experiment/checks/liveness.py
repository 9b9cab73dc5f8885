"""Once the faults have stopped, everyone goes on, within a bound."""

from collections.abc import Mapping

from runtime.chaos.experiment.evidence import NS_PER_MS, Evidence
from runtime.chaos.experiment.journal import Finding, Outcome
from runtime.chaos.faults.kinds import Parameter, Value


class Liveness:
    """Each verifying guest that still runs gets an answer after the last fault was healed."""

    name = "liveness"
    meaning = "after the last fault was healed, each guest gets an answer within a bound"
    parameters = (Parameter("within_ms", 10_000, "", "ms", 1, 3_600_000),)

    def judge(self, evidence: Evidence, parameters: Mapping[str, Value]) -> Finding:
        texts, waits = [], []
        for name, history in sorted(evidence.histories.items()):
            exits = [event for event in evidence.all_of("partition.exited") if event["partition"] == name]
            if any(event["monotonic_ns"] < evidence.healed_ns for event in exits):
                continue  # a dead guest asks for nothing
            later = [
                operation.completed_ns
                for operation in history.operations
                if operation.completed_ns is not None and operation.completed_ns >= evidence.healed_ns
            ]
            if not later:
                if history.operations and history.operations[-1].completed_ns is None:
                    texts.append(f"{name}: no answer after the faults had stopped")
                continue
            waits.append((min(later) - evidence.healed_ns) / NS_PER_MS)
            if waits[-1] > float(parameters["within_ms"]):
                texts.append(f"{name}: its first answer came {waits[-1]:.0f} ms after the faults had stopped")
        figures = {"longest_wait_ms": max(waits)} if waits else {}
        if texts:
            return Finding(self.name, Outcome.VIOLATED, tuple(texts), figures)
        if not waits:
            return Finding(
                self.name, Outcome.INCONCLUSIVE, ("no guest asked for anything afterwards",), figures
            )
        return Finding(self.name, Outcome.PASSED, (), figures)
