"""What a check is, and how an experiment names one: by a name of ours, or `package.module:Class` for your own.

class NobodyExited:
    name, meaning, parameters = "nobody-exited", "no partition ended before its time", ()

    def judge(self, evidence, parameters):
        texts = [f"{event['partition']} ended" for event in evidence.all_of("partition.exited")
                 if event["monotonic_ns"] < evidence.healed_ns]
        return Finding(self.name, Outcome.VIOLATED if texts else Outcome.PASSED, tuple(texts))
"""

import importlib
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, Protocol

from runtime.chaos.experiment.checks.containment import Containment
from runtime.chaos.experiment.checks.disk_history import DiskHistory
from runtime.chaos.experiment.checks.fifo import Fifo
from runtime.chaos.experiment.checks.liveness import Liveness
from runtime.chaos.experiment.checks.resource_balance import ResourceBalance
from runtime.chaos.experiment.evidence import Evidence
from runtime.chaos.experiment.journal import Finding
from runtime.chaos.experiment.model import CheckPlan, Experiment
from runtime.chaos.faults.kinds import Parameter, ParameterError, Value


class Check(Protocol):
    """Decides one thing. Made without arguments; keeps nothing from one trial to the next."""

    @property
    def name(self) -> str: ...
    @property
    def meaning(self) -> str:
        """What it decides, in one line."""

    @property
    def parameters(self) -> tuple[Parameter, ...]: ...
    def judge(self, evidence: Evidence, parameters: Mapping[str, Value]) -> Finding:
        """Without I/O. INCONCLUSIVE where the evidence shows nothing either way."""


class CheckError(ValueError):
    """There is no such check, or it does not take these parameters."""


CHECKS: Final[Mapping[str, Check]] = MappingProxyType(
    {check.name: check for check in (DiskHistory(), Fifo(), Liveness(), Containment(), ResourceBalance())}
)
DEFAULT: Final = (CheckPlan(kind="history"), CheckPlan(kind="liveness"), CheckPlan(kind="resources"))


def plans_of(experiment: Experiment) -> tuple[CheckPlan, ...]:
    """Its checks; those that always make sense, where it names none."""
    if experiment.checks:
        return experiment.checks
    return (*DEFAULT, CheckPlan(kind="fifo")) if experiment.workload.sequenced else DEFAULT


def check_of(plan: CheckPlan) -> tuple[Check, dict[str, Value]]:
    """The check and all its parameters. Raises CheckError."""
    check = CHECKS.get(plan.kind) or _own(plan.kind)
    known = {parameter.name: parameter for parameter in check.parameters}
    for name in plan.parameters:
        if name not in known:
            raise CheckError(f"{plan.kind} has no parameter {name!r}; there is: {', '.join(known) or 'none'}")
    try:
        return check, {
            name: parameter.check(plan.parameters.get(name, parameter.default))
            for name, parameter in known.items()
        }
    except ParameterError as error:
        raise CheckError(f"{plan.kind}: {error}") from None


def _own(name: str) -> Check:
    module, colon, kind = name.partition(":")
    if not colon:
        raise CheckError(
            f"no check is named {name!r}; there are {', '.join(CHECKS)}, or package.module:Class"
        )
    try:
        made: Check = getattr(importlib.import_module(module), kind)()
    except (ImportError, AttributeError, TypeError) as error:
        raise CheckError(f"{name}: {error}; is its folder in PYTHONPATH?") from None
    return made
