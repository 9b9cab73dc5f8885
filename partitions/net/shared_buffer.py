"""A buffer that a guest lent us, wherever its pages are: whole pieces of it to read from and write to.

Pages that stand one behind the other come as one view, and then nothing is copied to look at a piece.
"""

from collections.abc import Sequence


class SharedBuffer:
    def __init__(self, views: Sequence[memoryview]) -> None:
        """`views`: all of it, in order."""
        self._views = list(views)
        self.size_bytes = sum(len(view) for view in self._views)

    @property
    def whole(self) -> memoryview | None:
        """All of it as one view, if it is one."""
        return self._views[0] if len(self._views) == 1 else None

    def look(self, offset: int, length: int) -> memoryview:
        """These bytes: a view of them, or, where their pages are apart, a copy. IndexError: not inside."""
        if not 0 <= offset <= offset + length <= self.size_bytes:
            raise IndexError(f"{length} bytes at {offset} of a buffer of {self.size_bytes}")
        if len(self._views) == 1:
            return self._views[0][offset : offset + length]
        parts = list(self._parts(offset, length))
        return parts[0] if len(parts) == 1 else memoryview(b"".join(parts))

    def write(self, offset: int, data: bytes | memoryview) -> None:
        if len(self._views) == 1:
            self._views[0][offset : offset + len(data)] = data
            return
        at = 0
        for part in self._parts(offset, len(data)):
            part[:] = data[at : at + len(part)]
            at += len(part)

    def _parts(self, offset: int, length: int) -> Sequence[memoryview]:
        parts, start, end = [], 0, offset + length
        for view in self._views:
            first, last = max(offset - start, 0), min(end - start, len(view))
            if first < last:
                parts.append(view[first:last])
            start += len(view)
        return parts
