"""`python -m runtime.hypervisor --power-fd N`: the broker's process, started by the platform."""

from __future__ import annotations

import gc
import os
import signal
import sys
from typing import Final

from runtime.hypervisor.zygote import Zygote
from runtime.lifeline import adopt_orphans, die_with_parent, name_process

_DEFAULTS: Final = {
    "--power-fd": "",
    "--zygote-module": "partitions.zygote",
    "--on-root-failure": "halt",
}


def main(arguments: list[str]) -> int:
    """Exit status: 0 after a stop that was asked for, 1 if the machine halted by itself."""
    options = _DEFAULTS | dict(zip(arguments[::2], arguments[1::2], strict=False))
    if set(options) != set(_DEFAULTS) or len(arguments) % 2 or not options["--power-fd"].isdecimal():
        print(f"usage: python -m runtime.hypervisor {' '.join(f'{name} ...' for name in _DEFAULTS)}")
        return 2
    os.set_inheritable(
        int(options["--power-fd"]), False
    )  # before any process of ours: it commands the machine
    die_with_parent(os.getppid())
    adopt_orphans()
    name_process("pv-hypervisor")
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the platform's to handle
    zygote = Zygote(options["--zygote-module"])
    # Only now: the zygote has more to import than we do, and does it meanwhile.
    from runtime.hypervisor.broker import Broker
    from runtime.hypervisor.machine import RootFailurePolicy
    from runtime.hypervisor.power import STOPPED, serve

    broker = Broker(zygote, RootFailurePolicy(options["--on-root-failure"]))
    gc.collect()
    gc.freeze()  # what is here now stays: later collections need not look at it
    return 0 if serve(int(options["--power-fd"]), broker) == STOPPED else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
