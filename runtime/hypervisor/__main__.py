"""`python -m runtime.hypervisor --power-fd N`: the broker's process, started by the platform."""

from __future__ import annotations

import gc
import mmap
import os
import signal
import sys
from typing import Final

from runtime.hypervisor.zygote import Zygote
from runtime.machine.lifeline import adopt_orphans, die_with_parent, name_process

_DEFAULTS: Final = {
    "--power-fd": "",
    "--zygote-module": "partitions.zygote",
    "--on-root-failure": "halt",
    "--scheduler": "auto",
    "--recorder-fd": "",  # memory that outlives us, for the flight recorder; else it is our own
    "--driver-module": "",  # of a monolithic machine: what drivers are loaded with; else none is
    "--trace-fd": "",  # memory that outlives us, to stamp every kick into; else nobody traces
    "--sandbox": "",  # how partitions are sandboxed: the zygote's to carry out
    "--debug-fd": "",  # a listening socket for the debug port; else there is none
    "--zygote-fd": "",  # of a zygote that our loader has made, and
    "--zygote-pid": "",  # its pid: a child of ours; else we make one
}


def main(arguments: list[str]) -> int:
    """Exit status: 0 after a stop that was asked for, 1 if the machine halted by itself."""
    options = _DEFAULTS | dict(zip(arguments[::2], arguments[1::2], strict=False))
    if set(options) != set(_DEFAULTS) or len(arguments) % 2 or not options["--power-fd"].isdecimal():
        print(f"usage: python -m runtime.hypervisor {' '.join(f'{name} ...' for name in _DEFAULTS)}")
        return 2
    for option in ("--power-fd", "--recorder-fd", "--trace-fd", "--debug-fd", "--zygote-fd"):
        if options[option].isdecimal():  # before any process of ours: they are the machine's, and its owner's
            os.set_inheritable(int(options[option]), False)
    die_with_parent(os.getppid())
    adopt_orphans()
    name_process("pv-hypervisor")
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the platform's to handle
    born = (int(options["--zygote-pid"]), int(options["--zygote-fd"])) if options["--zygote-fd"] else None
    zygote = Zygote(options["--zygote-module"], options["--sandbox"], born)
    # Only now: a new zygote has more to import than we do, and does it meanwhile.
    from runtime.hypervisor.broker import Broker
    from runtime.hypervisor.machine import RootFailurePolicy
    from runtime.hypervisor.power import STOPPED, serve
    from runtime.hypervisor.recorder import RECORDER_BYTES, Recorder
    from runtime.hypervisor.scheduling_mechanisms import SchedulerKind

    memory = mmap.mmap(int(options["--recorder-fd"] or -1), RECORDER_BYTES)
    policy, driver_module = RootFailurePolicy(options["--on-root-failure"]), options["--driver-module"]
    if driver_module:
        from runtime.hypervisor.monolithic import MonolithicBroker

        broker: Broker = MonolithicBroker(zygote, Recorder(memory), policy, driver_module)
    else:
        broker = Broker(zygote, Recorder(memory), policy)
    if options["--trace-fd"]:
        broker.host.trace(int(options["--trace-fd"]))
    gc.collect()
    gc.freeze()  # what is here now stays: later collections need not look at it
    debug_fd = int(options["--debug-fd"]) if options["--debug-fd"] else None
    reason = serve(int(options["--power-fd"]), broker, SchedulerKind(options["--scheduler"]), debug_fd)
    return 0 if reason == STOPPED else 1


if __name__ == "__main__":
    status = main(sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    # The kernel takes everything back at once; the interpreter would let go of it piece by piece.
    os._exit(status)
