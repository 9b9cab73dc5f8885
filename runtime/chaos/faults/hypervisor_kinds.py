"""Faults that the hypervisor carries out: interrupts, its messages, its answers, the time that it tells, forged ids.

The target is a partition. "*" is every one, where a fault only meets what passes anyway.
"""

from typing import Final

from runtime.abi import HvStatus, HypercallCode
from runtime.chaos.faults.kinds import Carrier, FaultKind, Group, Need, Parameter

EVERYBODY: Final = "*"
DELAY_MS_MAX: Final = 60_000
STORM_RATE_MAX: Final = 2_000
FORGERY_RATE_MAX: Final = 1_000
SKEW_PPM_MAX: Final = 200_000  # a fifth: worse than any oscillator, and slower than the way back
JUMP_MS_MAX: Final = 3_600_000
ANY_CALL: Final = "any"

# Calls that a machine cannot do without in any form: a program that is refused them is not broken, it is not born.
_NEVER_REFUSED: Final = frozenset({"GET_BIRTH", "HEARTBEAT"})
CALLS: Final = tuple(code.name for code in HypercallCode if code.name not in _NEVER_REFUSED)
STATUSES: Final = tuple(
    status.name for status in HvStatus if status not in (HvStatus.SUCCESS, HvStatus.CALL_PENDING)
)

_TO: Final = Parameter("direction", "to", "messages to the target, or from it", choices=("to", "from"))
_DELAY: Final = Parameter("delay_ms", 20, "how much later", "ms", 1, DELAY_MS_MAX)
_WITHIN: Final = Parameter("delay_ms", 50, "how long it waits to be overtaken", "ms", 1, DELAY_MS_MAX)
_RATE: Final = Parameter("rate", 50, "", "calls/s", 1, FORGERY_RATE_MAX)
_RING: Final = "each interrupt to the target"
_POST: Final = "each message that is posted"


def _hypervisor(
    name: str, group: Group, summary: str, seam: str, *parameters: Parameter, needs: tuple[Need, ...] = ()
) -> FaultKind:
    return FaultKind(name, group, summary, seam, Carrier.HYPERVISOR, parameters, needs)


def _interrupt(
    name: str, summary: str, seam: str, *parameters: Parameter, needs: tuple[Need, ...] = ()
) -> FaultKind:
    return _hypervisor(name, Group.INTERRUPT, summary, seam, *parameters, needs=needs)


def _message(name: str, summary: str, *parameters: Parameter) -> FaultKind:
    return _hypervisor(name, Group.MESSAGE, summary, _POST, _TO, *parameters)


def _forged(name: str, summary: str, *parameters: Parameter) -> FaultKind:
    seam = "each hypercall that is made in the target's name, over what the target may call with"
    return _hypervisor(name, Group.AUTHORITY, summary, seam, *parameters)


HYPERVISOR_KINDS: Final = (
    _interrupt("interrupt-lost", "an interrupt does not arrive; healed, each line that was not rung rings once", _RING),
    _interrupt("interrupt-duplicate", "an interrupt arrives twice", _RING),
    _interrupt("interrupt-delayed", "an interrupt arrives late", _RING, _DELAY),
    _interrupt(
        "interrupt-storm", "every line and doorbell of the target rings for nothing", "each ring",
        Parameter("rate", 500, "of each line", "rings/s", 1, STORM_RATE_MAX),
    ),
    _interrupt(
        "interrupt-lost-across-reconnect", "the first interrupt to the target after the root's end is lost",
        "the first interrupt after each end of a root", needs=(Need.SUCCESSOR,),
    ),
    _message("synic-message-drop", "a message is accepted and not delivered"),
    _message("synic-message-duplicate", "a message is delivered twice"),
    _message("synic-message-delay", "a message, and what is behind it, is delivered late", _DELAY),
    _message("synic-message-reorder", "a message is overtaken by the next", _WITHIN),
    _message("synic-message-corrupt", "one bit of a message is flipped"),
    _hypervisor(
        "synic-message-lost-across-reconnect", Group.MESSAGE,
        "the first message to or from the target after the root's end is lost",
        "the first message after each end of a root", _TO, needs=(Need.SUCCESSOR,),
    ),
    _hypervisor(
        "hypercall-slow", Group.TIME, "a call of the target is answered late, but for one that brings descriptors",
        "each such call", Parameter("call", "POST_MESSAGE", "which", choices=(ANY_CALL, *CALLS)), _DELAY,
    ),
    _hypervisor(
        "hypercall-refused", Group.RESOURCE, "a call of the target is refused, and does nothing", "each such call",
        Parameter("call", "POST_MESSAGE", "which", choices=CALLS),
        Parameter("status", "INSUFFICIENT_BUFFERS", "with what", choices=STATUSES),
    ),
    _hypervisor("timer-late", Group.TIME, "a synthetic timer expires late", "each expiry", _DELAY),
    _hypervisor(
        "heartbeat-lost", Group.TIME,
        "the target lives and its heartbeats do not arrive, so that it is declared hung", "each heartbeat",
    ),
    _hypervisor(
        "clock-jump", Group.TIME,
        "the target's reference time jumps forward; healed, it runs at half its speed until it is right again",
        "the time as it is", Parameter("jump_ms", 1_000, "how far", "ms", 1, JUMP_MS_MAX),
    ),
    _hypervisor(
        "clock-skew", Group.TIME,
        "the target's reference time runs too fast or too slow; healed, it is made right without ever going back",
        "the time as it is", Parameter("ppm", 500, "too fast; below 0: too slow", "ppm", -SKEW_PPM_MAX, SKEW_PPM_MAX),
    ),
    _forged("forge-partition-id", "calls on partitions that are none of the target's", _RATE),
    _forged("forge-connection-id", "messages and signals over connections that are not the target's", _RATE),
    _forged("hypercall-garbage", "calls that do not exist, or with arguments that are none", _RATE),
    _forged(
        "memory-greed", "it takes every page that its pool has, and asks for more; healed, it gives them back", _RATE
    ),
    FaultKind(
        "kill-zygote", Group.PROCESS, "SIGKILL to what all partitions are forked from; the target is the hypervisor",
        "the process as it is", Carrier.HYPERVISOR, strikes_once=True,
    ),
)  # fmt: skip
