"""A whole machine whose guests run ordinary programs on interfaces of their own, and talk by stream sockets."""

import json
import shutil
import socket
import struct
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest

from runtime.machine.capture_wire import FILE_HEAD, MAGIC_NANOSECONDS, RECORD_HEAD
from tests.machine.conftest import PARTVISOR, PATIENCE_S, Boot, RunningMachine, machine_toml

pytestmark = [
    pytest.mark.machine,
    pytest.mark.skipif(not Path("/dev/net/tun").exists(), reason="there is no /dev/net/tun"),
    pytest.mark.skipif(shutil.which("ping") is None, reason="there is no ping"),
]

PROGRAM: Final = '''
from partitions.streams.guest import StreamError, StreamRefused, StreamReset


def server(partition):
    """Sends back in capitals what comes on a stream, one after the other, until one says no more than a dot."""
    with partition.open_tap() as tap, partition.listen_stream(5000) as listener:
        partition.report("ready", mtu=tap.nic.mtu)
        while True:
            with listener.accept(60) as stream:
                try:
                    while data := stream.receive_some(timeout_s=60):
                        if data == b".":
                            return 0
                        stream.send_all(data.upper())
                except StreamReset:
                    stream.abort()


def deaf(partition):
    """Takes no frame in until a program of the host wants to know how many there are; once that, and then again."""
    with partition.open_net("net0", receive_bytes=1 << 16) as nic, partition.listen_stream(5000) as listener:
        partition.report("ready", mtu=nic.mtu)
        for _ in range(2):
            with listener.accept(60) as stream:
                count = 0
                while frames := nic.receive(64, 0.1):
                    count += len(frames)
                stream.send_all(b"%d" % count)


BROADCAST = """
import socket
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
    for _ in range(300):
        sock.sendto(bytes(1000), ("10.9.0.255", 9))
"""


def shout(partition, target, port, word):
    with partition.connect_stream(target, port) as stream:
        stream.send_all(word)
        stream.send_eof()
        return stream.receive_some(timeout_s=30)


def client(partition):
    """Does what a program of the host says, a word at a time."""
    held = []

    def refused():
        try:
            partition.connect_stream("server", 5001)
        except StreamRefused:
            return "refused"

    def reset():
        try:
            held[0].receive_some(timeout_s=60)
        except StreamReset:
            return "reset"

    def run(*words):
        code, output = tap.run(words, 30)
        return code

    with partition.open_tap() as tap, partition.listen_stream(7000) as listener:
        orders = {
            "ping": lambda: run("ping", "-c", "2", "-i", "0.1", "-W", "5", "10.9.0.1"),
            "walls": lambda: [
                tap.run(["sh", "-c", words], 30)[0] != 0
                for words in ("cat /etc/shadow", "echo x > /var/tmp/partvisor", "ls /root /home", "cat /proc/1/status")
            ]
            + [run("sh", "-c", "echo x > /tmp/mine && cat /tmp/mine"), run("sh", "-c", "exit 7")],
            "broadcast": lambda: run("python3", "-c", BROADCAST),
            "stream": lambda: shout(partition, "server", 5000, b"guest").decode(),
            "host": lambda: shout(partition, "host", 6000, b"host").decode(),
            "refused": refused,
            "hold": lambda: held.append(partition.connect_stream("server", 5000)) or "held",
            "reset": reset,
        }
        partition.report("ready", mtu=tap.nic.mtu)
        while True:
            try:
                with listener.accept(60) as stream:
                    word = stream.receive_some(timeout_s=30).decode()
                    if word == "end":
                        for one in held:
                            one.abort()
                        with partition.connect_stream("server", 5000) as last:
                            last.send_all(b".")
                        return 0
                    stream.send_all(str(orders[word]()).encode())
            except StreamError as error:
                print("stream:", error)
'''

CAPTURED: Final = 5
NETWORK: Final = '[[root.device]]\nname = "net0"\nkind = "net"\nbackend = "switch"\n'


def guest(name: str, address: str) -> str:
    return (
        f'[[partition]]\nname = "{name}"\nprogram = "backends:{name}"\nmemory = "32MiB"\nstreams = true\n'
        f'[[partition.device]]\nname = "net0"\n[partition.tap]\ndevice = "net0"\naddress = "{address}/24"\n'
    )


DEAF: Final = (
    '[[partition]]\nname = "deaf"\nprogram = "backends:deaf"\nmemory = "16MiB"\nstreams = true\n'
    '[[partition.device]]\nname = "net0"\n'
)


def path_of(machine: RunningMachine, name: str) -> Path:
    found = list(machine.runtime_dir.glob(f"*/{name}"))
    assert found, f"{machine.errors}\n{machine.events}"
    return found[0]


def ask(machine: RunningMachine, word: str) -> str:
    """What the client answers; again while no root is there to pass it on."""
    until = time.monotonic() + PATIENCE_S
    while time.monotonic() < until:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(PATIENCE_S)
            try:
                sock.connect(str(path_of(machine, "stream-client")))
                sock.sendall(b"CONNECT 7000\n")
                head = b""
                while not head.endswith(b"\n") and (byte := sock.recv(1)):
                    head += byte
                if head == b"OK 7000\n":
                    sock.sendall(word.encode())
                    answer = b""
                    while piece := sock.recv(1000):
                        answer += piece
                    if answer or word == "end":
                        return answer.decode()
            except ConnectionError:
                pass
        time.sleep(0.05)
    raise AssertionError(f"no answer to {word}\n{machine.events}")


def wait_until(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.02)


def dropped(machine: RunningMachine, partition: str) -> int:
    """Frames for it that its network dropped, as the operator is told."""
    shown = json.loads(machine.command("show", partition, "--json").stdout)
    (count,) = [row["dropped"] for row in shown["devices"] if row["device"] == "net0"]
    return int(count)


def heard(machine: RunningMachine) -> int:
    """How many frames waited for the deaf guest, which takes them in now."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(PATIENCE_S)
        sock.connect(str(path_of(machine, "stream-deaf")))
        sock.sendall(b"CONNECT 5000\n")
        return int(sock.makefile("rb").read().removeprefix(b"OK 5000\n"))


def check_a_guest_that_does_not_take_its_frames(machine: RunningMachine) -> None:
    """What its buffer has no room for is dropped and counted; the others go on; it hears again once it has read."""
    assert ask(machine, "broadcast") == "0"
    assert ask(machine, "ping") == "0"  # by the same way: what was sent before has gone it, too
    assert dropped(machine, "deaf") > 100
    assert dropped(machine, "server") == 0
    assert 0 < heard(machine) < 100
    assert ask(machine, "broadcast") == "0"
    assert ask(machine, "ping") == "0"
    assert 0 < heard(machine) < 100


def frames_of(path: Path) -> list[bytes]:
    data = path.read_bytes()
    magic, *_, link = FILE_HEAD.unpack_from(data)
    assert (magic, link) == (MAGIC_NANOSECONDS, 1)
    at, frames, last = FILE_HEAD.size, list[bytes](), (0, 0)
    while at < len(data):
        seconds, nanoseconds, kept, whole = RECORD_HEAD.unpack_from(data, at)
        assert last <= (seconds, nanoseconds)
        assert kept == whole
        last, at = (seconds, nanoseconds), at + RECORD_HEAD.size + kept
        frames.append(data[at - kept : at])
    return frames


def checksum(data: bytes) -> int:
    total: int = sum(struct.unpack(f">{len(data) // 2}H", data[: len(data) // 2 * 2]))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def is_good_ping(frame: bytes) -> bool:
    """An echo request or its reply, whose checksums are right."""
    ip = frame[14:34]
    if frame[12:14] != b"\x08\x00" or ip[9] != 1:
        return False
    icmp = frame[34 : 14 + int.from_bytes(ip[2:4], "big")]
    return checksum(ip) == 0xFFFF == checksum(icmp)


def test_ordinary_programs_and_streams_and_what_a_dead_root_costs(
    boot: Boot, tmp_path: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "backends.py").write_text(PROGRAM)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    machine = boot(
        machine_toml(
            guest("server", "10.9.0.1"),
            guest("client", "10.9.0.2"),
            DEAF,
            devices=NETWORK,
            on_root_failure="restart",
        )
    )
    machine.wait_for("guest.ready", "server")
    machine.wait_for("guest.ready", "client")
    machine.wait_for("guest.ready", "deaf")

    out = scratch / "net.pcap"
    capture = subprocess.Popen(
        [*PARTVISOR, "capture", "net0", str(out), "--count", str(CAPTURED), "--json"],
        env=machine.environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    wait_until(out.exists)
    while capture.poll() is None:  # the first frames may go by before it has begun
        assert ask(machine, "ping") == "0"
    told = json.loads(capture.communicate(timeout=PATIENCE_S)[0])
    assert (told["frames"], told["dropped"]) == (CAPTURED, 0)
    frames = frames_of(out)
    assert len(frames) == CAPTURED
    assert sum(map(is_good_ping, frames)) >= 2
    if shutil.which("tshark"):
        bad = subprocess.run(
            ["tshark", "-o", "ip.check_checksum:TRUE", "-r", str(out), "-Y", "ip.checksum.status == 0"],
            capture_output=True,
            text=True,
            check=True,
        )
        assert bad.stdout == ""

    check_a_guest_that_does_not_take_its_frames(machine)
    assert ask(machine, "walls") == "[True, True, True, True, 0, 7]"
    assert ask(machine, "stream") == "GUEST"
    assert ask(machine, "refused") == "refused"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path_of(machine, "stream-client")) + "_6000")
        listener.listen()
        listener.settimeout(PATIENCE_S)
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(PATIENCE_S)
            sock.connect(str(path_of(machine, "stream-client")))
            sock.sendall(b"CONNECT 7000\nhost")
            connection, _ = listener.accept()
            with connection:
                connection.settimeout(PATIENCE_S)
                assert connection.recv(100) == b"host"
                connection.sendall(b"HOST")
            assert sock.makefile("rb").read() == b"OK 7000\nHOST"

    assert ask(machine, "hold") == "held"
    machine.command("crash", "root")
    assert ask(machine, "reset") == "reset"  # and new ones come through
    assert ask(machine, "stream") == "GUEST"
    assert ask(machine, "ping") == "0"
    machine.command("capture", "server", str(scratch / "no.pcap"), "--port", "net7")
    ask(machine, "end")
    assert machine.wait() == 0
