"""Run by tests as somebody who is not root: boots a strict machine, looks into its processes, prints what was seen.

With `tap`: a machine whose guest runs programs on an interface of its own; prints how they ended. With `network`: one
whose guest sends datagrams to a server of the host's, without privileges; prints what came back.
"""

import contextlib
import json
import os
import signal
import socket
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Final

import psutil

from tests.machine.conftest import RunningMachine, idle_partition, machine_toml
from tests.machine.datagrams import OWN_PORT
from tests.machine.test_sandbox import ATTACHED, DISK, partitions_of, status


def look(pid: int) -> dict[str, object]:
    shown = status(pid)
    return {
        "descriptors": len([entry.readlink() for entry in Path(f"/proc/{pid}/fd").iterdir()]),
        "maps": len(Path(f"/proc/{pid}/maps").read_text().splitlines()),
        **{key: shown[key] for key in ("NoNewPrivs", "Seccomp", "CapEff")},
    }


TAP_GUEST: Final = """
[[partition]]
name = "guest"
program = "partitions.guests.programs:main"
memory = "32MiB"
[[partition.device]]
name = "net0"
[partition.tap]
device = "net0"
address = "10.77.0.2/24"
[partition.args]
commands = [
    ["ping", "-q", "-c", "1", "10.77.0.2"],
    ["sh", "-c", "ip -brief address show eth0 | grep -q 10.77.0.2/24"],
    ["sh", "-c", "cat /etc/shadow"],
]
"""


NETWORK_GUEST: Final = """
[[partition]]
name = "guest"
program = "tests.machine.datagrams:main"
memory = "32MiB"
args = {{ port = {port} }}
[[partition.device]]
name = "net0"
"""


def run_programs() -> None:
    with tempfile.TemporaryDirectory(prefix="pv-") as folder:
        config = Path(folder, "machine.toml")
        network = '[[root.device]]\nname = "net0"\nkind = "net"\nbackend = "switch"\n'
        config.write_text(machine_toml(TAP_GUEST, devices=network, sandbox="strict"))
        machine = RunningMachine(config, Path(folder, "run"))
        try:
            machine.wait_for("machine.ready")
            machine.wait()
            programs = [event["fields"] for event in machine.events if event["kind"] == "guest.program"]
            codes = [program["code"] for program in programs]
            is_unavailable = "TapUnavailable" in f"{machine.events} {machine.errors}"
            print(json.dumps({"user": os.getuid(), "codes": codes, "is_unavailable": is_unavailable}))
        finally:
            machine.destroy()
            assert machine.leftovers() == []


def use_network() -> None:
    """The server, and who uses the forwarded port, are this user's, too."""
    with (
        tempfile.TemporaryDirectory(prefix="pv-") as folder,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client,
    ):
        server.bind(("127.0.0.1", 0))
        threading.Thread(target=_answer_in_capitals, args=(server,), daemon=True).start()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as free:
            free.bind(("127.0.0.1", 0))
            client.connect(free.getsockname())
        host, port = client.getpeername()
        config = Path(folder, "machine.toml")
        network = '[[root.device]]\nname = "net0"\nkind = "net"\nbackend = "user"\n'
        network += f'forward = ["udp:{host}:{port}:{OWN_PORT}"]\n'
        guest = NETWORK_GUEST.format(port=server.getsockname()[1])
        config.write_text(machine_toml(guest, devices=network, sandbox="strict"))
        machine = RunningMachine(config, Path(folder, "run"))
        try:
            machine.wait_for("guest.listening")
            threading.Thread(target=_say_again_and_again, args=(client,), daemon=True).start()
            heard = machine.wait_for("guest.heard")["fields"]["said"]
            said = machine.wait_for("guest.answered")["fields"]["said"]
            (passt,) = [
                one
                for one in psutil.Process(machine.process.pid).children()
                if one.name().startswith("passt")
            ]
            print(json.dumps({"user": os.getuid(), "heard": heard, "said": said, "passt": passt.uids().real}))
        finally:
            machine.destroy()
            assert machine.leftovers() == []


def _say_again_and_again(client: socket.socket) -> None:
    """Datagrams get lost, and passt's port is not there from the start."""
    while client.fileno() >= 0:
        with contextlib.suppress(OSError):
            client.send(b"is anybody there?")
        time.sleep(0.1)


def _answer_in_capitals(server: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while True:
            data, sender = server.recvfrom(2000)
            server.sendto(data.upper(), sender)


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="pv-") as folder:
        config = Path(folder, "machine.toml")
        guest = idle_partition("guest") + ATTACHED
        text = machine_toml(guest, devices=DISK, architecture="disaggregated", sandbox="strict")
        config.write_text(text.replace("[machine]", '[machine]\non_root_failure = "restart"'))
        machine = RunningMachine(config, Path(folder, "run"))
        try:
            machine.wait_for("machine.ready")
            rows = partitions_of(machine)
            said: dict[str, object] = {row["name"]: look(row["pid"]) for row in rows}
            (root,) = [row["pid"] for row in rows if row["name"] == "root"]
            os.kill(root, signal.SIGKILL)
            machine.wait_for("root.restored")
            (successor,) = [
                event["fields"]["pid"]
                for event in machine.events
                if event["kind"] == "root.started" and event["fields"]["pid"] != root
            ]
            print(json.dumps({"user": os.getuid(), **said, "root's successor": look(successor)}))
        finally:
            machine.destroy()
            assert machine.leftovers() == []


if __name__ == "__main__":
    {"tap": run_programs, "network": use_network}.get("".join(sys.argv[1:]), main)()
