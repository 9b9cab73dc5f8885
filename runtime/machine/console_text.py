"""What a console said, as text with the time of each line, in two files of bounded size: an older one, a newer one."""

import datetime
from pathlib import Path
from typing import Final

LOG_BYTES_MAX: Final = 1 << 20  # of both together
LINE_BYTES_MAX: Final = 1024  # a longer line is cut into several

_TAB: Final = 9


class ConsoleText:
    """Owns the files. None is kept open: who looks what the platform holds finds no more than the config says."""

    def __init__(self, path: Path) -> None:
        self._path, self._older = path, path.with_suffix(".old.log")
        path.touch(0o600)
        self._size = 0
        self._at = 0  # bytes of the line that was begun

    def write(self, data: bytes) -> None:
        """Bytes as they come. Each line gets the time of its first byte."""
        out = bytearray()
        for byte in data:
            if byte == 0x0D:
                continue
            if self._at == 0:
                out += _now()
            if byte == 0x0A or self._at >= LINE_BYTES_MAX:
                out += b"\n"
                self._at = 0
                if byte == 0x0A:
                    continue
                out += _now()
            out += bytes([byte]) if (byte >= 0x20 and byte != 0x7F) or byte == _TAB else b"\\x%02x" % byte
            self._at += 1
        try:
            if self._size + len(out) > LOG_BYTES_MAX // 2:
                self._turn()
            with self._path.open("ab") as file:
                file.write(out)
        except OSError:  # the file system is full: a console is not worth a machine
            return
        self._size += len(out)

    def _turn(self) -> None:
        self._path.replace(self._older)
        self._size = 0

    def read(self) -> bytes:
        """All that is kept; it ends with the end of a line."""
        older = self._older.read_bytes() if self._older.exists() else b""
        text = older + self._path.read_bytes()
        return text + b"\n" if self._at else text


def _now() -> bytes:
    now = datetime.datetime.now()  # local, as the terminal's clock shows
    return now.isoformat(sep=" ", timespec="milliseconds").encode() + b"  "
