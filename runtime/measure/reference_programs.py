"""The C programs that figures are compared with: built when they are needed, gone with the benchmark."""

import json
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from runtime.exits import CommandError

_HERE: Final = Path(__file__).parent
_NATIVE: Final = _HERE.parents[1] / "bus" / "native"
_FLAGS: Final = ["-D_GNU_SOURCE", "-std=c11", "-O2", "-Wall", "-Wextra", f"-I{_NATIVE}"]
_SOURCES: Final = {
    "slot_pingpong": [_HERE / "reference" / "slot_pingpong.c"],
    "ring_c": [_HERE / "reference" / "ring_c.c", _NATIVE / "ring.c", _NATIVE / "crc32c.c"],
}
_PATIENCE_S: Final = 300


@dataclass(frozen=True, slots=True)
class ReferencePrograms:
    """Programs that stand ready to be run. Each prints one JSON object."""

    directory: Path
    realtime: bool

    def run(self, name: str, *arguments: object) -> dict[str, Any]:
        command = [str(self.directory / name), *map(str, arguments)]
        if self.realtime:
            command = ["chrt", "-f", "1", *command]
        done = subprocess.run(command, capture_output=True, text=True, timeout=_PATIENCE_S, check=False)
        if done.returncode != 0:
            raise CommandError(f"the reference program failed: {done.stderr.strip() or done.returncode}")
        answer: dict[str, Any] = json.loads(done.stdout)
        return answer


@contextmanager
def reference_programs(realtime: bool = False) -> Iterator[ReferencePrograms]:
    """Compile them into a directory of their own.

    Raises:
        CommandError: there is no C compiler, or it refuses.
    """
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise CommandError("the references are C programs, and there is no C compiler: apt-get install gcc")
    with tempfile.TemporaryDirectory(prefix="partvisor-bench-") as directory:
        for name, sources in _SOURCES.items():
            command = [compiler, *_FLAGS, *map(str, sources), "-o", str(Path(directory) / name)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode != 0:
                raise CommandError(f"{name} does not compile: {done.stderr.strip()}")
        yield ReferencePrograms(Path(directory), realtime)
