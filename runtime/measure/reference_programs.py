"""The C programs that figures are compared with: built when they are needed, gone with the benchmark."""

import json
import shutil
import subprocess
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from runtime.exits import CommandError

_HERE: Final = Path(__file__).parent
_NATIVE: Final = _HERE.parents[1] / "bus" / "native"
_FLAGS: Final = ["-D_GNU_SOURCE", "-std=c11", "-O2", "-Wall", "-Wextra", f"-I{_NATIVE}"]
_TRACE_COST: Final = [
    _HERE / "reference" / "trace_cost.c",
    *(_NATIVE / f"{name}.c" for name in ("endpoint", "ring", "synic", "trace")),
]
_SOURCES: Final[Mapping[str, Sequence[str | Path]]] = {
    "slot_pingpong": [_HERE / "reference" / "slot_pingpong.c"],
    "frame_pair": [_HERE / "reference" / "frame_pair.c", _NATIVE / "histogram.c"],
    "ipc_pingpong": [_HERE / "reference" / "ipc_pingpong.c", _NATIVE / "histogram.c"],
    "trace_cost": _TRACE_COST,
    "trace_cost_without": ["-DPARTVISOR_WITHOUT_TRACE", *_TRACE_COST],
    "ring_c": [_HERE / "reference" / "ring_c.c", _NATIVE / "ring.c", _NATIVE / "crc32c.c"],
}
_ORDINARY: Final = ("slot_pingpong", "ipc_pingpong", "ring_c")
_PATIENCE_S: Final = 300


@dataclass(frozen=True, slots=True)
class ReferencePrograms:
    """Programs that stand ready to be run. Each prints one JSON object."""

    directory: Path
    realtime: bool

    def run(self, name: str, *arguments: object) -> dict[str, Any]:
        """Its answer. CommandError: it failed, or did not end."""
        command = [str(self.directory / name), *map(str, arguments)]
        if self.realtime:
            command = ["chrt", "-f", "1", *command]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=_PATIENCE_S, check=False)
        except subprocess.TimeoutExpired as error:
            raise CommandError(
                f"{name} did not end within {_PATIENCE_S} s: both its sides need a CPU; stop what else runs"
            ) from error
        if done.returncode != 0:
            raise CommandError(f"the reference program failed: {done.stderr.strip() or done.returncode}")
        answer: dict[str, Any] = json.loads(done.stdout)
        return answer


@contextmanager
def reference_programs(
    realtime: bool = False, names: Collection[str] = _ORDINARY
) -> Iterator[ReferencePrograms]:
    """Compile those of these names into a directory of their own.

    Raises:
        CommandError: there is no C compiler, or it refuses.
    """
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise CommandError("the references are C programs, and there is no C compiler: apt-get install gcc")
    with tempfile.TemporaryDirectory(prefix="partvisor-bench-") as directory:
        for name in names:
            command = [compiler, *_FLAGS, *map(str, _SOURCES[name]), "-o", str(Path(directory) / name)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode != 0:
                raise CommandError(f"{name} does not compile: {done.stderr.strip()}")
        yield ReferencePrograms(Path(directory), realtime)
