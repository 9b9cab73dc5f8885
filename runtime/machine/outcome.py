"""How a machine ended."""

from dataclasses import dataclass, field

from runtime.abi import ExitStatus


@dataclass(slots=True)
class Outcome:
    """Made when the end begins; the exits come as it goes on."""

    reason: str  # one line
    failed: bool
    exits: dict[str, ExitStatus] = field(default_factory=dict)  # by partition
