"""What a figure depends on, read from the machine; and in what two runs' conditions differ.

What the machine does not show is `NONE_VISIBLE`, never guessed: inside a VM the governor and the idle states belong to
the host.
"""

import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Final

from runtime.measure.results import NONE_VISIBLE, Conditions, IdleCpus, Run

LOAD_DIFFERENCE_MAX: Final = 1.0  # of the load averages before two runs: one more busy process
_SYSTEM: Final = Path("/sys/devices/system")
_GIT_PATIENCE_S: Final = 5
_POLICIES: Final = {
    os.SCHED_OTHER: "SCHED_OTHER",
    os.SCHED_BATCH: "SCHED_BATCH",
    os.SCHED_IDLE: "SCHED_IDLE",
    os.SCHED_FIFO: "SCHED_FIFO",
    os.SCHED_RR: "SCHED_RR",
}


def read_conditions(
    cpus: Sequence[int], idle_cpus: IdleCpus = IdleCpus.UNKNOWN, scheduler_class: str | None = None
) -> Conditions:
    """The machine as it is now. Call it before the first round: the load is that of others.

    Args:
        cpus: the ones that will be used.
        idle_cpus: KEPT_AWAKE where the caller does so; UNKNOWN: HALT, unless the kernel was told to poll.
        scheduler_class: of the measuring processes; None: this process's own.
    """
    if idle_cpus is IdleCpus.UNKNOWN:
        idle_cpus = _idle_cpus()
    return Conditions(
        machine=f"{platform.node()} ({platform.machine()})",
        kernel=platform.release(),
        cpu_model=cpu_model(),
        cpus=tuple(cpus),
        governor=_governors(cpus),
        clock_source=_line(_SYSTEM / "clocksource/clocksource0/current_clocksource"),
        scheduler_class=scheduler_class or _POLICIES.get(os.sched_getscheduler(0), "unknown"),
        load_before=round(os.getloadavg()[0], 2),
        idle_cpus=idle_cpus,
        idle_driver=_line(_SYSTEM / "cpu/cpuidle/current_driver"),
    )


def busy_text(load_before: float) -> str:
    """What to say first where others want the CPUs too; nothing on a quiet machine."""
    if load_before <= LOAD_DIFFERENCE_MAX:
        return ""
    return f"the machine is busy (load {load_before:g}): whatever comes of it, measure again when it is quiet"


def cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith(("model name", "Model")):
            return line.partition(":")[2].strip()
    return platform.machine()


def read_versions(peers: Sequence[str] = ()) -> dict[str, str]:
    """Of Python, its C library, partvisor, and those distributions among `peers` that are installed."""
    found = {
        "python": platform.python_version(),
        "libc": " ".join(platform.libc_ver()).strip() or NONE_VISIBLE,
    }
    for name in ("partvisor", *peers):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def read_revision() -> str:
    """The commit that this program was started from, "-dirty" where files differ from it."""
    place = str(Path(__file__).parent)
    command = ["git", "--no-optional-locks", "-C", place, "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_GIT_PATIENCE_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return NONE_VISIBLE
    return done.stdout.strip() if done.returncode == 0 else NONE_VISIBLE


def differences(first: Run, second: Run) -> dict[str, tuple[str, str]]:
    """What differs and makes figures incomparable, by name: (in the first, in the second).

    Not partvisor's own version, nor the revision: those are what one compares.
    """
    pairs: dict[str, tuple[object, object]] = {"bench": (first.bench, second.bench)}
    ours, theirs = first.conditions, second.conditions
    for name in Conditions.__struct_fields__:
        pairs[name.replace("_", " ")] = (getattr(ours, name), getattr(theirs, name))
    if abs(ours.load_before - theirs.load_before) <= LOAD_DIFFERENCE_MAX:
        del pairs["load before"]
    for name in sorted({*first.versions, *second.versions} - {"partvisor"}):
        pairs[f"version of {name}"] = (first.versions.get(name), second.versions.get(name))
    return {name: (_text(one), _text(two)) for name, (one, two) in pairs.items() if one != two}


def described(found: Mapping[str, tuple[str, str]]) -> str:
    """ "kernel (6.1 and 6.2), governor (...)": for one line of error."""
    return ", ".join(f"{name} ({one} and {two})" for name, (one, two) in found.items())


def _text(value: object) -> str:
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return "none" if value is None else str(value)


def _line(path: Path) -> str:
    try:
        return path.read_text().strip() or NONE_VISIBLE
    except OSError:
        return NONE_VISIBLE


def _governors(cpus: Sequence[int]) -> str:
    found = {_line(_SYSTEM / f"cpu/cpu{cpu}/cpufreq/scaling_governor") for cpu in cpus}
    return ", ".join(sorted(found)) or NONE_VISIBLE


def _idle_cpus() -> IdleCpus:
    """Without `idle=poll` a CPU with nothing to run halts; how deeply is the machine's affair."""
    words = _line(Path("/proc/cmdline")).split()
    if words == NONE_VISIBLE.split():
        return IdleCpus.UNKNOWN
    return IdleCpus.KEPT_AWAKE if "idle=poll" in words else IdleCpus.HALT
