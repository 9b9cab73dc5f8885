"""A disk exported over NBD, under one fio job, beside other servers of a disk in memory; and the disk's own API.

4 KiB random reads, 32 in flight, on one connection. Each round measures all of them, one right after the other, so that
what disturbs a round disturbs all: only ratios of one round's own figures count. A server that is not installed is
named as missing, and nothing stands for it.
"""

import contextlib
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from runtime.exits import CommandError
from runtime.measure.bench_disk import run_load
from runtime.measure.child_process import machine_command, running
from runtime.measure.paired_ratio import Interval, median_of, ratio_of

DISK_BYTES: Final = 64 << 20
DEPTH: Final = 32
START_S: Final = 30.0
API_READS_A_SECOND: Final = 400_000  # how many the API is given to do, for each second of fio's
NBDKIT: Final = "nbdkit memory"
QEMU: Final = "qemu-storage-daemon"
QEMU_NBD: Final = "qemu-nbd"
API: Final = "the disk's own API"
_MACHINE: Final = """
[machine]
name = "bench-nbd-{pid}"
memory = "256MiB"
[[root.device]]
name = "disk0"
kind = "disk"
backend = "memory"
size = {size}
[[partition]]
name = "export"
program = "partitions.guests.nbd:main"
args = {{ device = "disk0" }}
[[partition.device]]
name = "disk0"
[[partition.file]]
name = "nbd"
mode = "listen"
"""


@dataclass(frozen=True, slots=True)
class Figures:
    """One server in one round."""

    per_second: float
    server_cpu_us: float | None  # of all its processes, an operation; None: not known


@dataclass(slots=True)
class ExportRow:
    """One server over all rounds; `missing`: why it was not measured."""

    name: str
    figures: list[Figures] = field(default_factory=list)
    missing: str | None = None

    @property
    def per_second(self) -> float:
        return median_of([one.per_second for one in self.figures]).value

    def to_json(self, ours: "ExportRow") -> dict[str, Any]:
        if self.missing is not None:
            return {"server": self.name, "missing": self.missing}
        cpu = [one.server_cpu_us for one in self.figures if one.server_cpu_us is not None]
        row: dict[str, Any] = {
            "server": self.name,
            "per_second": round(self.per_second),
            "server_cpu_us": round(median_of(cpu).value, 2) if cpu else None,
        }
        return row if self is ours else row | {"ratio": self.ratio(ours).to_json()}

    def ratio(self, ours: "ExportRow") -> Interval:
        """Ours by theirs; of the API, its own by the fastest export's."""
        return ratio_of([one.per_second for one in ours.figures], [one.per_second for one in self.figures])


@dataclass(frozen=True, slots=True)
class NbdServer:
    uri: str
    pids: tuple[int, ...]


@contextlib.contextmanager
def our_export(folder: Path) -> Iterator[NbdServer]:
    """A machine of ours, booted. CommandError: it does not come up."""
    config = folder / "machine.toml"
    config.write_text(_MACHINE.format(pid=os.getpid(), size=DISK_BYTES))
    with running(machine_command(config), stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        assert process.stdout is not None
        with process.stdout:
            yield _await_export(process)


def _await_export(process: "subprocess.Popen[bytes]") -> NbdServer:
    assert process.stdout is not None
    deadline, data, pids = time.monotonic() + START_S, b"", []
    os.set_blocking(process.stdout.fileno(), False)
    while time.monotonic() < deadline and process.poll() is None:
        if not select.select([process.stdout], [], [], 0.2)[0]:
            continue
        data += process.stdout.read() or b""
        *lines, data = data.split(b"\n")
        for line in lines:
            try:
                event = json.loads(line)
            except ValueError:
                continue
            if event["kind"] in ("root.started", "partition.started"):
                pids.append(int(event["fields"]["pid"]))
            elif event["kind"] == "guest.nbd_ready":
                return NbdServer(event["fields"]["uri"], tuple(pids))
    raise CommandError("the machine with the export does not boot: try partvisor run configs/nbd.toml")


def _peer_command(name: str, folder: Path) -> list[str] | None:
    """None: it is not installed."""
    socket = folder / "peer.sock"
    image = folder / "peer.img"
    program = name.split()[0]
    if shutil.which(program) is None:
        return None
    if name == NBDKIT:
        return [program, "-f", "-U", str(socket), "memory", str(DISK_BYTES)]
    image.write_bytes(bytes(1 << 20) * (DISK_BYTES >> 20))
    if name == QEMU_NBD:
        return [program, "-f", "raw", "-k", str(socket), "-t", "--cache=writeback", str(image)]
    return [
        *(program, "--blockdev", f"driver=file,node-name=f,filename={image}"),
        *("--nbd-server", f"addr.type=unix,addr.path={socket}"),
        *("--export", "type=nbd,id=e,node-name=f,name="),
    ]


@contextlib.contextmanager
def _peer(command: list[str], folder: Path) -> Iterator[NbdServer]:
    path = folder / "peer.sock"
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with running(command, **quiet) as process:
        deadline = time.monotonic() + START_S
        while not path.exists():
            if process.poll() is not None or time.monotonic() > deadline:
                raise CommandError(f"{command[0]} does not start")
            time.sleep(0.01)
        yield NbdServer(f"nbd+unix:///?socket={path}", (process.pid,))
    path.unlink(missing_ok=True)


@contextlib.contextmanager
def running_peer(name: str) -> Iterator[tuple[Path, int]]:
    """Its socket, and its pid. CommandError: it is not installed, or it does not start."""
    with tempfile.TemporaryDirectory(prefix="pv-bench-") as place:
        folder = Path(place)
        if (command := _peer_command(name, folder)) is None:
            raise CommandError(f"{name.split()[0]} is not installed")
        with _peer(command, folder) as server:
            yield folder / "peer.sock", server.pids[0]


def run_job(server: NbdServer, seconds: float, folder: Path) -> Figures:
    """The fio job. CommandError: it failed."""
    command = ["fio", "--name=reads", "--ioengine=nbd", f"--uri={server.uri}", "--rw=randread", "--bs=4k"]
    command += [f"--iodepth={DEPTH}", f"--size={DISK_BYTES}", "--time_based", f"--runtime={seconds}"]
    command += ["--randseed=1", "--output-format=json", f"--aux-path={folder}"]
    before = _cpu_seconds(server.pids)
    done = subprocess.run(command, capture_output=True, text=True, timeout=60 + 3 * seconds, check=False)
    used = _cpu_seconds(server.pids) - before
    try:
        job = json.loads(done.stdout[done.stdout.index("{") :])["jobs"][0]
        reads, iops = int(job["read"]["total_ios"]), float(job["read"]["iops"])
        if done.returncode or job["error"] or not reads:
            raise ValueError(f"error {job['error']}")
    except (ValueError, KeyError, IndexError) as error:
        raise CommandError(f"fio failed: {(done.stderr.strip() or str(error))[-200:]}") from error
    return Figures(iops, used / reads * 1e6)


def _cpu_seconds(pids: tuple[int, ...]) -> float:
    total = 0
    for pid in pids:
        words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        total += int(words[11]) + int(words[12])  # user and system, in ticks
    return total / os.sysconf("SC_CLK_TCK")


def qemu_server() -> str:
    """That of the two which is there."""
    return QEMU if shutil.which(QEMU) or not shutil.which(QEMU_NBD) else QEMU_NBD


def measure_peer(name: str, seconds: float) -> Figures:
    """One of the peers, once. CommandError: it is not installed, or it fails."""
    with running_peer(name) as (path, pid):
        return run_job(NbdServer(f"nbd+unix:///?socket={path}", (pid,)), seconds, path.parent)


def _api(seconds: float, cpus: tuple[int, int], folder: Path) -> Figures:
    load = run_load(folder, cpus, "adaptive", random=int(API_READS_A_SECOND * seconds))
    reads = load["random 4 KiB reads"]
    return Figures(reads["operations"] / reads["seconds"], None)


def measure_exports(
    rounds: int, seconds: float, cpus: tuple[int, int], say: Callable[[str], None] = lambda text: None
) -> list[ExportRow]:
    """Ours first, then the peers, then the API. CommandError: a server that is there does not work."""
    if shutil.which("fio") is None:
        raise CommandError("the job is fio's, and fio is missing: apt-get install fio")
    ours, api = ExportRow("our export"), ExportRow(API)
    peers = [ExportRow(NBDKIT), ExportRow(qemu_server())]
    with tempfile.TemporaryDirectory(prefix="pv-bench-") as place, contextlib.ExitStack() as stack:
        folder = Path(place)
        commands = {peer.name: _peer_command(peer.name, folder) for peer in peers}
        for peer in peers:
            if commands[peer.name] is None:
                peer.missing = f"{peer.name.split()[0]} is not installed"
        export = stack.enter_context(our_export(folder))
        for number in range(rounds):
            begun = time.monotonic()
            ours.figures.append(run_job(export, seconds, folder))
            for peer in peers:
                if (command := commands[peer.name]) is not None:
                    with _peer(command, folder) as server:
                        peer.figures.append(run_job(server, seconds, folder))
            api.figures.append(_api(seconds, cpus, folder))
            left = (rounds - number - 1) * (time.monotonic() - begun)
            say(f"round {number + 1} of {rounds}, about {left:.0f} s to go")
    return [ours, *peers, api]
