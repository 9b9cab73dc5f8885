"""Deaths at a named step of a server's work: bus.seam says which steps there are, and what has been done at each."""

from typing import Final

from bus.seam import DEATHS_MAX, Step
from runtime.chaos.faults.kinds import Carrier, FaultKind, Group, Need, Parameter

KILL_AT_STEP: Final = "kill-at-step"
STEP_KINDS: Final = (
    FaultKind(
        KILL_AT_STEP,
        Group.PROCESS,
        "SIGKILL at a step of a request; knobs.space passes of the step go by first, each time",
        "each pass through that step",
        Carrier.SERVER,
        (
            Parameter("step", Step.PUBLISH.text, "which", choices=tuple(step.text for step in Step)),
            Parameter("deaths", 1, "of this process and of its successors", "", 1, DEATHS_MAX),
        ),
        (Need.SUCCESSOR,),
        strikes="deaths",
    ),
)
