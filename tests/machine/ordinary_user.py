"""Run by tests as somebody who is not root: boots a strict machine, looks into its processes, prints what was seen."""

import json
import os
import signal
import tempfile
from pathlib import Path

from tests.machine.conftest import RunningMachine, idle_partition, machine_toml
from tests.machine.test_sandbox import ATTACHED, DISK, partitions_of, status


def look(pid: int) -> dict[str, object]:
    shown = status(pid)
    return {
        "descriptors": len([entry.readlink() for entry in Path(f"/proc/{pid}/fd").iterdir()]),
        "maps": len(Path(f"/proc/{pid}/maps").read_text().splitlines()),
        **{key: shown[key] for key in ("NoNewPrivs", "Seccomp", "CapEff")},
    }


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
    main()
