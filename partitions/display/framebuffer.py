"""What one screen shows at the moment, and who is told when that changes. Any thread."""

import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from partitions.display.rectangle import Rectangle, Region, whole
from partitions.display.video_session import PIXEL_BYTES


@dataclass(frozen=True, slots=True, eq=False)
class Picture:
    """Where pixels are, and how many. The guest may write there at any moment."""

    width: int
    height: int
    pitch: int
    pixels: memoryview | None = None  # read-only, from the first pixel on; None: all is black

    def read(self, part: Rectangle) -> bytes:
        """Its pixels, row by row; `part` lies within. Blue, green, red, and a byte without meaning."""
        row_bytes = part.width * PIXEL_BYTES
        if self.pixels is None:
            return bytes(row_bytes * part.height)
        start = part.top * self.pitch + part.left * PIXEL_BYTES
        if row_bytes == self.pitch:
            return bytes(self.pixels[start : start + row_bytes * part.height])
        rows = range(start, start + self.pitch * part.height, self.pitch)
        return b"".join([self.pixels[at : at + row_bytes] for at in rows])


class Watcher:
    """One viewer's: what it has not seen. Its methods are for one thread; `wake` is called by any."""

    def __init__(self, framebuffer: "Framebuffer", wake: Callable[[], None]) -> None:
        self._framebuffer, self.wake = framebuffer, wake
        self.region: Final = Region()  # guarded by the framebuffer's lock

    def look(self) -> tuple[Picture, bool]:
        """What is shown, and whether anything of it is unseen."""
        with self._framebuffer.lock:
            return self._framebuffer.picture, bool(self.region.parts)

    def take(self, picture: Picture) -> list[Rectangle]:
        """What of the picture is unseen; from here on it counts as seen."""
        with self._framebuffer.lock:
            return self.region.take(whole(picture.width, picture.height))

    def forget(self, part: Rectangle) -> None:
        """It counts as unseen."""
        with self._framebuffer.lock:
            self.region.add(part)

    def close(self) -> None:
        with self._framebuffer.lock:
            self._framebuffer.watchers.discard(self)


class Framebuffer:
    """One screen's."""

    def __init__(self, width: int, height: int) -> None:
        self.lock: Final = threading.Lock()
        self.picture_max: Final = Picture(width, height, width * PIXEL_BYTES)  # black
        self.picture = self.picture_max
        self.watchers: Final[set[Watcher]] = set()

    def watch(self, wake: Callable[[], None]) -> Watcher:
        watcher = Watcher(self, wake)
        with self.lock:
            self.watchers.add(watcher)
        return watcher

    def show(self, picture: Picture | None) -> None:
        """From here on this, all of it unseen. None: nothing, black, in the size that was shown last."""
        with self.lock:
            if picture is None:
                last = self.picture
                picture = Picture(last.width, last.height, last.width * PIXEL_BYTES)
            self.picture = picture
            for watcher in self.watchers:
                watcher.region.add(whole(picture.width, picture.height))
            watchers = list(self.watchers)
        for watcher in watchers:
            watcher.wake()

    def damage(self, parts: Iterable[Rectangle]) -> None:
        """Within the picture."""
        with self.lock:
            watchers = list(self.watchers)
            for part in parts:
                for watcher in watchers:
                    watcher.region.add(part)
        for watcher in watchers:
            watcher.wake()
