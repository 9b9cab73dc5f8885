"""Ordinary programs on the interfaces of guests: at full speed with a capture, to the host and back, as any user."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from runtime.config.architecture import Architecture
from runtime.machine.user_networks import find_program
from tests.machine.conftest import PARTVISOR, PATIENCE_S, Boot, machine_toml
from tests.machine.test_network_backends import frames_of
from tests.machine.test_networks import in_a_network_of_its_own
from tests.machine.test_sandbox import REPOSITORY, _as_ordinary_user

pytestmark = [
    pytest.mark.machine,
    pytest.mark.soak,
    pytest.mark.skipif(not Path("/dev/net/tun").exists(), reason="there is no /dev/net/tun"),
    pytest.mark.skipif(shutil.which("ping") is None, reason="there is no ping"),
]

CAPTURED = 2000
WRONG = "ip.checksum.status == 0 || tcp.checksum.status == 0"


@pytest.mark.skipif(shutil.which("iperf3") is None, reason="there is no iperf3")
@pytest.mark.skipif(shutil.which("tshark") is None, reason="there is no tshark")
@pytest.mark.parametrize("architecture", list(Architecture))
def test_iperf3_between_two_guests_sends_no_frame_with_a_wrong_checksum(
    boot: Boot, architecture: Architecture, scratch: Path
) -> None:
    machine = boot(
        (REPOSITORY / "configs" / "guest_taps.toml").read_text(), f'machine.architecture="{architecture}"'
    )
    machine.wait_for("guest.tap", "client")
    out = scratch / "client.pcap"
    with subprocess.Popen(
        [*PARTVISOR, "capture", "client", str(out), "--count", str(CAPTURED), "--json"],
        env=machine.environment,
        stdout=subprocess.PIPE,
        text=True,
    ) as capture:
        told = json.loads(capture.communicate(timeout=PATIENCE_S)[0])
    assert told["frames"] == CAPTURED == len(frames_of(out))
    checks = ["-o", "ip.check_checksum:TRUE", "-o", "tcp.check_checksum:TRUE"]

    def matching(wanted: str) -> int:
        words = ["tshark", *checks, "-r", str(out), "-Y", wanted]
        return subprocess.run(words, capture_output=True, check=True).stdout.count(b"\n")

    assert matching("tcp.checksum.status == 1") > CAPTURED // 2  # they were looked at
    assert matching(WRONG) == 0
    assert machine.wait() == 0, machine.errors
    codes = [event["fields"]["code"] for event in machine.events if event["kind"] == "guest.program"]
    assert codes == [0, 0]


GUEST = """
[[partition]]
name = "guest"
program = "partitions.guests.programs:main"
memory = "32MiB"
args = {{ commands = {commands}, seconds_after = {seconds} }}
[[partition.device]]
name = "net0"
[partition.tap]
device = "net0"
address = "10.77.0.2/24"
"""


def test_a_guests_interface_and_the_hosts_ping_each_other(boot: Boot) -> None:
    def work() -> None:
        subprocess.run(["ip", "tuntap", "add", "dev", "pvtest0", "mode", "tap"], check=True)
        subprocess.run(["ip", "address", "add", "10.77.0.1/24", "dev", "pvtest0"], check=True)
        subprocess.run(["ip", "link", "set", "pvtest0", "up"], check=True)
        words = ["ping", "-q", "-A", "-c", "20", "-W", "10", "-s", "1400"]
        device = '[[root.device]]\nname = "net0"\nkind = "net"\nbackend = "tap"\ninterface = "pvtest0"\n'
        commands = json.dumps([[*words, "10.77.0.1"]])
        machine = boot(machine_toml(GUEST.format(commands=commands, seconds=60), devices=device))
        done = machine.wait_for("guest.program")["fields"]
        assert done["code"] == 0, machine.events
        subprocess.run([*words, "10.77.0.2"], check=True, capture_output=True)
        machine.process.send_signal(signal.SIGTERM)
        machine.wait()

    in_a_network_of_its_own(work)


def test_programs_in_the_guest_of_an_ordinary_user_are_nobody_else() -> None:
    """They serve and ask on its interface; of the host they have what that user has, and no more."""
    done = subprocess.run(
        [*_as_ordinary_user(), sys.executable, "-m", "tests.machine.ordinary_user", "tap"],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"},
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    if said["is_unavailable"]:
        pytest.skip("this host gives an ordinary user's guests no TAP")
    assert said["user"] != 0
    assert said["codes"] == [0, 0, 1]


@pytest.mark.skipif(find_program() is None, reason="there is no passt")
@pytest.mark.parametrize("ordinary", [True, False], ids=["ordinary", "as-it-is"])
def test_whoever_runs_the_machine_has_a_network_without_privileges(ordinary: bool) -> None:
    """Both ways: a forwarded port leads to a guest that has not said anything yet, which then reaches the host."""
    done = subprocess.run(
        [
            *(_as_ordinary_user() if ordinary else []),
            sys.executable,
            "-m",
            "tests.machine.ordinary_user",
            "network",
        ],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"},
        timeout=2 * PATIENCE_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert (said["heard"], said["said"]) == ("is anybody there?", "HELLO")
    assert (said["user"] != 0) or not ordinary
    assert said["passt"] != 0  # what root starts becomes somebody else
