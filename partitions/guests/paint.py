"""A guest with a screen: what is typed stands on it, and the mouse paints.

Letters are large, black on white, in lines at the top; backspace takes one back, Enter begins a line. The left button
paints red, the right one blue, the middle one green.
"""

import threading
from typing import Final

from partitions.child import Partition
from partitions.display.conversation import DisplayClosedError
from partitions.display.mouse import Mouse, to_pixel
from partitions.display.mouse_wire import Buttons
from partitions.display.video import Video
from partitions.guests.bitmap_font import GLYPH_HEIGHT, GLYPH_WIDTH, rows_of

WHITE: Final = 0xFFFFFF
BLACK: Final = 0x000000
SCALE: Final = 3  # screen pixels for one of a letter
CELL_WIDTH: Final = (GLYPH_WIDTH + 1) * SCALE
CELL_HEIGHT: Final = (GLYPH_HEIGHT + 2) * SCALE
MARGIN: Final = 12
BRUSH: Final = 7  # pixels of its side
COLOURS: Final = {Buttons.LEFT: 0xD02020, Buttons.RIGHT: 0x2040D0, Buttons.MIDDLE: 0x20A040}
_READ_S: Final = 0.2


class Canvas:
    """The screen, drawn on by two threads in turn."""

    def __init__(self, video: Video) -> None:
        self._video = video
        self._lock = threading.Lock()
        self._columns = (video.width - 2 * MARGIN) // CELL_WIDTH
        self._column = self._line = 0
        self._draw(0, 0, video.width, video.height, WHITE)

    def _draw(self, x: int, y: int, width: int, height: int, colour: int) -> None:
        with self._lock:
            self._video.fill(x, y, width, height, colour)
            self._video.dirty(x, y, width, height)

    def write(self, text: str) -> None:
        for character in text:
            if character == "\b":
                self._column = max(self._column - 1, 0)
                self._put(" ")
            elif character == "\n" or self._column >= self._columns:
                self._column, self._line = 0, self._line + 1
            if character not in "\b\n":
                self._put(character)
                self._column += 1

    def _put(self, character: str) -> None:
        x, y = MARGIN + self._column * CELL_WIDTH, MARGIN + self._line * CELL_HEIGHT
        with self._lock:
            self._video.fill(x, y, CELL_WIDTH, CELL_HEIGHT, WHITE)
            for row, bits in enumerate(rows_of(character)):
                for column in range(GLYPH_WIDTH):
                    if bits >> (GLYPH_WIDTH - 1 - column) & 1:
                        self._video.fill(x + column * SCALE, y + row * SCALE, SCALE, SCALE, BLACK)
            self._video.dirty(x, y, CELL_WIDTH, CELL_HEIGHT)

    def follow(self, mouse: Mouse, last: tuple[int, int] | None, timeout_s: float) -> tuple[int, int] | None:
        """One report of the mouse: the place where it painted, which the next stroke begins at."""
        if (report := mouse.read(timeout_s)) is None:
            return last
        to = to_pixel(report.x, self._video.width), to_pixel(report.y, self._video.height)
        colour = next((COLOURS[button] for button in COLOURS if report.buttons & button), None)
        if colour is None:
            return None
        at = last or to
        steps = max(abs(to[0] - at[0]), abs(to[1] - at[1]), 1)
        for step in range(1, steps + 1):
            x, y = (at[axis] + (to[axis] - at[axis]) * step // steps for axis in (0, 1))
            self._draw(x - BRUSH // 2, y - BRUSH // 2, BRUSH, BRUSH, colour)
        return to


def main(partition: Partition) -> None:
    args = partition.args
    ended = threading.Event()
    with (
        partition.open_video(args.get("screen", "screen0"), args.get("width"), args.get("height")) as video,
        partition.open_keyboard(args.get("keyboard", "keyboard0")) as keyboard,
        partition.open_mouse(args.get("mouse", "mouse0")) as mouse,
    ):
        canvas = Canvas(video)
        canvas.write(str(args.get("text", "")))
        partition.report("painting", width=video.width, height=video.height)

        def paint() -> None:
            last: tuple[int, int] | None = None
            while not ended.is_set():
                try:
                    last = canvas.follow(mouse, last, _READ_S)
                except DisplayClosedError:
                    return

        painter = threading.Thread(target=paint, name="painter")
        painter.start()
        try:
            while True:
                if (stroke := keyboard.read(_READ_S)) is not None:
                    canvas.write(keyboard.typed(stroke))
        except DisplayClosedError:
            pass
        finally:
            ended.set()
            painter.join()
