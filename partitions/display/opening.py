"""How a partition's program opens the three devices that it has. `open_channel`: of the partition."""

import contextlib
from collections.abc import Callable, Iterator

from bus import guids
from partitions.display.keyboard import Keyboard
from partitions.display.mouse import Mouse
from partitions.display.video import Video
from partitions.vsc.channel import GuestChannel


@contextlib.contextmanager
def open_keyboard(open_channel: Callable[..., GuestChannel], name: str) -> Iterator[Keyboard]:
    with open_channel(name, guids.KEYBOARD, 0) as opened:
        yield Keyboard(opened.channel)


@contextlib.contextmanager
def open_mouse(open_channel: Callable[..., GuestChannel], name: str) -> Iterator[Mouse]:
    with open_channel(name, guids.MOUSE, 0) as opened:
        yield Mouse(opened.channel)


@contextlib.contextmanager
def open_video(
    open_channel: Callable[..., GuestChannel],
    name: str,
    width: int | None,
    height: int | None,
    vram_bytes: int,
) -> Iterator[Video]:
    with open_channel(name, guids.VIDEO, vram_bytes) as opened:
        yield Video(opened.channel, opened.data, opened.data_gpfn, width, height)
