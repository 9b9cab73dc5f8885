"""How a partition's program opens the three devices that it has."""

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from bus import guids
from partitions.display.keyboard import Keyboard
from partitions.display.mouse import Mouse
from partitions.display.video import Video

if TYPE_CHECKING:
    from partitions.child import Partition


@contextlib.contextmanager
def open_keyboard(partition: "Partition", name: str) -> Iterator[Keyboard]:
    with partition.open_channel(name, guids.KEYBOARD, 0) as opened:
        yield Keyboard(opened.channel)


@contextlib.contextmanager
def open_mouse(partition: "Partition", name: str) -> Iterator[Mouse]:
    with partition.open_channel(name, guids.MOUSE, 0) as opened:
        yield Mouse(opened.channel)


@contextlib.contextmanager
def open_video(
    partition: "Partition", name: str, width: int | None, height: int | None, vram_bytes: int
) -> Iterator[Video]:
    with partition.open_channel(name, guids.VIDEO, vram_bytes) as opened:
        yield Video(opened.channel, opened.data, opened.data_gpfn, width, height)
