"""Run by tests as somebody who is not root: boots a strict machine, looks into its processes, prints what was seen.

With `tap`: a machine whose guest runs programs on an interface of its own; prints how they ended.
"""

import json
import os
import signal
import sys
import tempfile
from pathlib import Path
from typing import Final

from tests.machine.conftest import RunningMachine, idle_partition, machine_toml
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
    run_programs() if sys.argv[1:] == ["tap"] else main()
