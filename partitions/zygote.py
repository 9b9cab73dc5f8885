"""The zygote: one process with every import done, from which the broker's partitions are forked.

A fresh interpreter needs 100 to 200 ms before a partition's first line runs; a fork from here needs a few. The zygote
forks a middleman, which forks the partition and exits at once: the kernel then hands the partition to the nearest
subreaper, which is the broker. So the broker is the parent of every partition, can wait for each, and takes them
all along when it dies.

Protocol, on the inherited SEQPACKET socket: ["spawn", {"id", "name", "module", "grant"}] with two descriptors (the
partition's end of its hypercall socket, the console) is answered by ["spawned", {"id", "pid"}]; pid 0 says that the
fork failed. The grant is what bounds the process: [pages, vps, files].

A partition's process puts up its own walls (partitions.sandbox) before it looks at anything that is not ours.
"""

import argparse
import contextlib
import gc
import os
import socket
import sys
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial
from typing import Final, NoReturn

import bus.native
import partitions.child
import partitions.guest_modules
import partitions.successor
from partitions.sandbox import apply, descriptors
from partitions.sandbox.limits import Grant
from partitions.sandbox.profiles import profile_of
from partitions.sandbox.readable import of_this_interpreter
from runtime.codec import DecodeError, close_all, receive_message, send_message
from runtime.config.sandbox import SandboxMode, SandboxOrders
from runtime.config.tap_order import TapOrder
from runtime.machine.lifeline import die_with_parent, name_process

ROOT_MODULE: Final = "partitions.root"  # a new root, where the machine goes on without the old one
_DESCRIPTORS_PER_SPAWN: Final = 2


@dataclass(frozen=True, slots=True)
class Birth:
    """What becomes of the next fork. Descriptors are its own copies."""

    name: str
    module: str
    hypercall_fd: int
    console_fd: int
    mode: SandboxMode
    grant: Grant
    tap: TapOrder | None = None
    partition_id: int = 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="partitions.zygote", description=__doc__)
    parser.add_argument("--fd", type=int, required=True, help="the broker's socket")
    parser.add_argument(
        "--sandbox", type=SandboxOrders.parse, default=SandboxOrders(), help="on, strict or off"
    )
    arguments = parser.parse_args()
    return serve(socket.socket(fileno=arguments.fd), arguments.sandbox)


def serve(control: socket.socket, sandbox: SandboxOrders) -> int:
    """A zygote's life, in a child of the broker that has one thread. Returns the exit code."""
    broker_pid = os.getppid()
    die_with_parent(broker_pid)
    name_process("pv-zygote")
    partitions.guest_modules.preload()
    apply.prepare()
    gc.collect()
    gc.freeze()  # what is here now never becomes garbage: a child's collector need not touch (and copy) its pages
    while True:
        try:
            received = receive_message(control, _DESCRIPTORS_PER_SPAWN)
        except DecodeError:
            return 1  # the broker is the only speaker: this is a defect, and dying shows it
        if received is None:
            return 0
        message, fds = received
        match message:
            case ["spawn", {"id": int(partition_id), "name": str(name), "module": str(module), **more}] if (
                len(fds) == 2
            ):
                mode, grant = sandbox.mode_of(name), _grant(more.get("grant"))
                tap = sandbox.taps.get(name)
                birth = Birth(name, module, fds[0], fds[1], mode, grant, tap, partition_id)
                pid = _fork_partition(control, broker_pid, birth)
                close_all(fds)
                send_message(control, ["spawned", {"id": partition_id, "pid": pid}])
            case _:
                close_all(fds)
                return 1


def _fork_partition(control: socket.socket, broker_pid: int, birth: Birth) -> int:
    read_end, write_end = os.pipe2(os.O_CLOEXEC)
    try:
        middleman = os.fork()
    except OSError:
        os.close(read_end)
        os.close(write_end)
        return 0
    if middleman == 0:
        os.close(read_end)
        _middleman(control, broker_pid, birth, write_end)
    os.close(write_end)
    with open(read_end, "rb") as pipe:
        text = pipe.read()
    os.waitpid(middleman, 0)
    return int(text) if text else 0


def _middleman(control: socket.socket, broker_pid: int, birth: Birth, write_end: int) -> NoReturn:
    with contextlib.suppress(OSError):
        pid = os.fork()
        if pid == 0:
            os.close(write_end)
            control.close()
            _partition(broker_pid, birth)
        os.write(write_end, str(pid).encode())
    os._exit(0)


def _partition(broker_pid: int, birth: Birth) -> NoReturn:
    status = 1
    try:
        die_with_parent(broker_pid)
        os.setsid()
        name_process(f"pv-{birth.name}")
        os.environ["PARTVISOR_PARTITION"] = birth.name
        if birth.module == ROOT_MODULE:
            if birth.mode is SandboxMode.OFF:
                of_this_interpreter().close()  # otherwise a root closes it when its own walls stand
            status = partitions.successor.succeed(birth.hypercall_fd, birth.console_fd)
        else:
            _put_up_walls(birth)
            status = partitions.child.main(birth.hypercall_fd, birth.console_fd)
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else (0 if stop.code is None else 1)
    except BaseException:  # the last frame of this process: say why, then end
        sys.excepthook(*sys.exc_info())
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


def _grant(value: object) -> Grant:
    match value:
        case [int(pages), int(vps), int(files)]:
            return Grant(pages, vps, files)
    return Grant(pages=0, vps=1, files=0)


def _put_up_walls(birth: Birth) -> None:
    """What this host does not allow, the root has said at boot: there, nobody waits for it. SandboxError: strict."""
    kept = (birth.hypercall_fd, birth.console_fd)
    inside: Callable[[], Collection[int]] = tuple
    if birth.tap is not None:
        from partitions.net import guest_tap_birth

        inside = partial(guest_tap_birth.make, birth.tap, birth.partition_id, kept)
        if birth.mode is SandboxMode.OFF:
            inside = partial(tuple, guest_tap_birth.in_own_namespaces(inside))
    if birth.mode is SandboxMode.OFF:
        descriptors.keep_only([*kept, *inside()])
        return
    apply.enter(profile_of(birth.module), of_this_interpreter(), kept, birth.grant, birth.mode, inside)


if __name__ == "__main__":
    assert bus.native is not None
    sys.exit(main())
