"""`scripts/demo [FILE]`: a child partition's file arrives on a disk that the root owns, and comes back.

Two boots of one disk. In the first, a child reads FILE and writes it through its VMBus channel; in the second,
another child reads the disk back. Three sums must agree: of FILE, of what each guest saw, and of the root's
backing file.
"""

import argparse
import contextlib
import hashlib
import json
import os
import signal
import sys
import sysconfig
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from runtime.config.document import ConfigError
from runtime.config.loading import load
from runtime.config.model import MachineConfig
from runtime.config.sizes import format_size
from runtime.exits import CommandError, ExitCode
from runtime.machine.events import Event
from runtime.machine.launch import run_in_foreground
from runtime.machine.rundir import janitor

_CONFIGS: Final = Path(__file__).parent.parent / "configs"
_PACKED_BYTES_MAX: Final = 64 << 20  # of the Python installation; a few seconds' work at most
_BAR_CHARACTERS: Final = 32
_READ_BYTES: Final = 1 << 20


class DemoFailed(CommandError):
    """The sums differ, or a guest did not finish."""


class Progress:
    """One line, redrawn on a terminal; a line a step otherwise."""

    def __init__(self, quiet: bool) -> None:
        self._quiet, self._terminal = quiet, sys.stderr.isatty()

    def step(self, text: str) -> None:
        if not self._quiet:
            self._clear()
            print(text, file=sys.stderr, flush=True)

    def bar(self, label: str, done: int, total: int) -> None:
        if self._terminal and not self._quiet:
            filled = _BAR_CHARACTERS * done // max(total, 1)
            bar = "#" * filled + "." * (_BAR_CHARACTERS - filled)
            print(f"\r  {label:<6} [{bar}] {format_size(done)}", end="", file=sys.stderr, flush=True)

    def _clear(self) -> None:
        if self._terminal:
            print("\r\x1b[K", end="", file=sys.stderr)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="scripts/demo",
        description="Copy a file through a partition onto the root's disk, boot again, read it back, compare.",
        epilog="Example: scripts/demo /usr/lib/os-release",
    )
    parser.add_argument("file", nargs="?", type=Path, metavar="FILE", help="default: this Python, packed")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.add_argument("--keep", type=Path, metavar="IMAGE", help="keep the disk image under this name")
    options = parser.parse_args(arguments)
    progress = Progress(quiet=options.json)
    try:
        result = run_demo(options.file, options.keep, progress)
    except ConfigError as error:
        print(f"demo: {error}", file=sys.stderr)
        return ExitCode.USAGE
    except CommandError as error:
        print(f"demo: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return ExitCode.INTERRUPTED
    if options.json:
        print(json.dumps(result))
    else:
        _print_result(result)
    return ExitCode.DONE if result["sums_agree"] else ExitCode.FAILED


def run_demo(file: Path | None, keep: Path | None, progress: Progress) -> dict[str, Any]:
    """Both boots. Raises DemoFailed when a guest did not finish; differing sums are in the result."""
    with _scratch_folder() as folder:
        source = file
        if source is None:
            progress.step("packing this Python installation as the file to copy")
            source = folder / "python.tar"
            _pack_python(source)
        try:
            size, source_sum = _sum_file(source, None)
        except OSError as error:
            raise DemoFailed(f"can't read {source}: {error.strerror}; name a readable file") from error
        if size == 0:
            raise DemoFailed(f"{source} is empty; name a file with bytes in it")
        image = folder / "disk.img" if keep is None else keep.absolute()
        image_bytes = max(64 << 20, -(-size // (1 << 20)) * (1 << 20))
        progress.step(
            f"first boot: partition 'writer' copies {format_size(size)} onto disk0; halfway the root is killed"
        )
        written = _boot(
            load(
                _CONFIGS / "quickstart.toml",
                [
                    "machine.on_root_failure=standby",
                    f"root.device.disk0.path={image}",
                    f"root.device.disk0.size={image_bytes}",
                    f"partition.writer.file.source.path={source.absolute()}",
                ],
            ),
            progress,
            kill_root=True,
        )
        progress.step("second boot: partition 'reader' reads the same disk back")
        read = _boot(
            load(
                _CONFIGS / "readback.toml",
                [f"root.device.disk0.path={image}", f"partition.reader.args.bytes={size}"],
            ),
            progress,
        )
        _, image_sum = _sum_file(image, size)
    sums = {
        "source": source_sum,
        "writer": written["sha256"],
        "backing file": image_sum,
        "reader": read["sha256"],
    }
    return {
        "bytes": size,
        "write": written,
        "read": read,
        "sha256": sums,
        "sums_agree": len(set(sums.values())) == 1,
    }


def _boot(config: MachineConfig, progress: Progress, *, kill_root: bool = False) -> dict[str, Any]:
    """Run one machine to its end; returns what its guest reported, with the boot's time and the root's fate.

    Args:
        kill_root: SIGKILL it when the guest says that half of the bytes are on the disk.
    """
    results: list[dict[str, Any]] = []
    roots: list[int] = []  # pids, the latest last
    fate: dict[str, Any] = {}
    begun = time.monotonic()
    ready_s: list[float] = []

    def listen(event: Event, encoded: bytes) -> None:
        match event.kind:
            case "machine.ready":
                ready_s.append(time.monotonic() - begun)
            case "root.started":
                roots.append(event.fields["pid"])
            case "guest.halfway" if kill_root:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(roots[-1], signal.SIGKILL)
                fate["killed_at_bytes"] = event.fields["bytes"]
            case "root.exited" if "killed_at_bytes" in fate:
                fate.setdefault("noticed_ns", event.fields["at_ns"])
            case "root.restored":
                fate["takeover_ms"] = (event.fields["serving_ns"] - fate["noticed_ns"]) / 1e6
            case "guest.progress":
                progress.bar(event.fields["direction"], event.fields["bytes"], event.fields["of"])
            case "guest.copied":
                results.append(event.fields)
            case "output" if event.fields.get("stream") == "stderr":
                progress.step(f"  {event.partition}: {event.fields.get('text')}")

    code = run_in_foreground(config, listen)
    if code == ExitCode.INTERRUPTED:
        raise KeyboardInterrupt
    if not results:
        raise DemoFailed("the guest ended without a result")
    return results[0] | fate | {"ready_s": ready_s[0] if ready_s else 0.0}


def _print_result(result: dict[str, Any]) -> None:
    rows = [("", "write", "read")]
    for label, text in _ROWS.items():
        rows.append((label, text(result["write"]), text(result["read"])))
    for label, write, read in rows:
        print(f"  {label:<22}{write:>16}{read:>16}")
    print()
    for holder, value in result["sha256"].items():
        print(f"  {holder:<14}{value}")
    write = result["write"]
    if "takeover_ms" in write:
        print(
            f"\n  the root was killed with {write['killed_at_bytes'] / 1e6:,.1f} MB written; its successor served"
            f" {write['takeover_ms']:.1f} ms later,\n  and the guest waited"
            f" {write['longest_gap_ns'] / 1e6:.1f} ms at the longest"
        )
    print("\n  all four sums agree" if result["sums_agree"] else "\n  THE SUMS DIFFER")


_ROWS: Final[dict[str, Callable[[dict[str, Any]], str]]] = {
    "bytes": lambda guest: f"{guest['bytes']:,}",
    "MB/s": lambda guest: f"{guest['bytes'] / 1e6 / guest['seconds']:,.0f}",
    "requests": lambda guest: f"{guest['requests']:,}",
    "interrupts sent": lambda guest: f"{guest['interrupts_sent']:,}",
    "interrupts suppressed": lambda guest: f"{guest['interrupts_suppressed']:,}",
    "round trip p50": lambda guest: f"{guest['round_trip_ns']['50'] / 1000:,.0f} µs",
    "round trip p99": lambda guest: f"{guest['round_trip_ns']['99'] / 1000:,.0f} µs",
    "machine ready in": lambda guest: f"{guest['ready_s'] * 1000:,.0f} ms",
}


def _sum_file(path: Path, length: int | None) -> tuple[int, str]:
    digest, done = hashlib.sha256(), 0
    with path.open("rb") as file:
        while length is None or done < length:
            piece = file.read(_READ_BYTES if length is None else min(_READ_BYTES, length - done))
            if not piece:
                break
            digest.update(piece)
            done += len(piece)
    return done, digest.hexdigest()


def _pack_python(target: Path) -> None:
    """Real bytes that every machine has: the standard library, as a tar file of at most _PACKED_BYTES_MAX."""
    library = Path(sysconfig.get_path("stdlib"))
    with target.open("wb") as output, tarfile.open(fileobj=output, mode="w|") as archive:
        for path in sorted(library.rglob("*")):
            if not path.is_file() or path.is_symlink():
                continue
            if output.tell() + path.stat().st_size > _PACKED_BYTES_MAX:
                break
            with contextlib.suppress(PermissionError):
                archive.add(path, arcname=str(path.relative_to(library)))


@contextlib.contextmanager
def _scratch_folder() -> Iterator[Path]:
    """A temporary folder that goes even if we are killed."""
    folder = Path(tempfile.mkdtemp(prefix="partvisor-demo-"))
    with janitor(folder):
        try:
            yield folder
        finally:
            for path in folder.iterdir():
                path.unlink()
            folder.rmdir()


if __name__ == "__main__":
    sys.exit(main())
