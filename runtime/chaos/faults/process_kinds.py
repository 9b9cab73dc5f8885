"""Faults that are done to a process from outside: signals, limits, and work that competes with it."""

from typing import Final

from runtime.chaos.faults.kinds import Carrier, FaultKind, Group, Need, Parameter

FAULT_SIGNALS: Final = ("SIGSEGV", "SIGBUS", "SIGILL", "SIGFPE", "SIGABRT", "SIGTRAP")
DELAY_MS_MAX: Final = 60_000
BURNERS_MAX: Final = 64
STORM_RATE_MAX: Final = 20_000
FLOOD_RATE_MAX: Final = 20_000

_DELAY: Final = Parameter("delay_ms", 0, "after its start", "ms", 0, DELAY_MS_MAX)
_ALIVE: Final = "the process as it is"
_START: Final = "each start of the process"


def _process(
    name: str,
    summary: str,
    seam: str,
    *parameters: Parameter,
    needs: tuple[Need, ...] = (),
    once: bool = False,
) -> FaultKind:
    return FaultKind(name, Group.PROCESS, summary, seam, Carrier.PROCESS, parameters, needs, once)


def _resource(name: str, summary: str, *parameters: Parameter) -> FaultKind:
    return FaultKind(name, Group.RESOURCE, summary, _ALIVE, Carrier.PROCESS, parameters)


PROCESS_KINDS: Final = (
    _process("kill", "SIGKILL", _ALIVE, once=True),
    _process(
        "fault-signal",
        "a signal that the processor raises: what a wild pointer looks like",
        _ALIVE,
        Parameter("signal", "SIGSEGV", "which", choices=FAULT_SIGNALS),
        once=True,
    ),
    _process("stop", "SIGSTOP; SIGCONT when it is healed", _ALIVE),
    _process(
        "starve",
        "stopped for most of each period: it gets a small share of its processor",
        "each period",
        Parameter("percent", 90, "of the time that it is stopped", "%", 1, 99),
        Parameter("period_ms", 20, "", "ms", 2, 10_000),
    ),
    _process(
        "stutter",
        "stopped now and then, for a while each time",
        "each interval",
        Parameter("stop_ms", 50, "how long", "ms", 1, DELAY_MS_MAX),
        Parameter("interval_ms", 200, "from one stop to the next", "ms", 1, DELAY_MS_MAX),
    ),
    _process(
        "slow-start", "stopped at each start, as if its host were slow", _START,
        Parameter("delay_ms", 100, "how long", "ms", 1, DELAY_MS_MAX),
    ),
    _process("crash-loop", "killed at each start", _START, _DELAY),
    _process(
        "kill-in-recovery",
        "the successor of one that dies is killed while it takes over",
        "each start that follows a death",
        Parameter("delay_ms", 2, "after its start", "ms", 0, DELAY_MS_MAX),
        needs=(Need.SUCCESSOR,),
    ),
    _process("kill-standby", "the root that waits is killed", "the standby as it is", needs=(Need.SUCCESSOR,),
             once=True),
    _process(
        "signal-storm",
        "signals that do nothing but interrupt system calls",
        "each signal",
        Parameter("rate", 1_000, "", "signals/s", 1, STORM_RATE_MAX),
    ),
    _resource(
        "limit-descriptors",
        "it may open no more descriptors than it has, and a few",
        Parameter("spare", 0, "how many more", "", 0, 4096),
    ),
    _resource(
        "limit-memory",
        "it may get no more private memory than it has, and some",
        Parameter("spare_kib", 0, "how much more", "KiB", 0, 1 << 22),
    ),
    _resource(
        "limit-file-size",
        "no file may grow beyond this: writes behind it fail with EFBIG",
        Parameter("bytes", 0, "", "bytes", 0, 1 << 40),
    ),
    _resource(
        "limit-processes",
        "its user may start no more processes or threads; root privileges are exempt",
        Parameter("spare", 0, "beyond those that there are", "", 0, 4096),
    ),
    _resource(
        "busy-neighbours",
        "processes that burn the same processors",
        Parameter("processes", 4, "how many", "", 1, BURNERS_MAX),
    ),
    FaultKind(
        "management-flood", Group.RESOURCE, "a client asks more than anybody reads; the platform is the target",
        "each request", Carrier.PROCESS, (Parameter("rate", 1_000, "", "requests/s", 1, FLOOD_RATE_MAX),),
    ),
)  # fmt: skip
