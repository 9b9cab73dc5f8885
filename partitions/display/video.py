"""The guest's end of a screen: pixels in its own memory, and telling the host which of them have changed.

    with partition.open_video("screen0") as video:
        video.fill(10, 10, 100, 50, 0xFF8000)
        video.dirty(10, 10, 100, 50)

A pixel is four bytes: blue, green, red, and one that means nothing.
"""

from typing import Final

from bus.memory import PAGE_BYTES
from bus.native import Channel
from partitions.display.conversation import Conversation, DisplayClosedError
from partitions.display.rectangle import Rectangle, whole
from partitions.display.video_session import DEPTH, PIXEL_BYTES
from partitions.display.video_wire import (
    VERSIONS,
    Dirt,
    FeatureChange,
    Output,
    ResolutionRequest,
    Resolutions,
    Situation,
    SituationAck,
    ToVideoGuest,
    VersionRequest,
    VersionResponse,
    VramLocation,
    VramLocationAck,
    decode_for_guest,
)

HEARD_MAX: Final = 16  # messages of the host that are taken in before anything is drawn


class Video:
    """Shown from the start, all black. One thread uses it."""

    def __init__(
        self, channel: Channel, vram: memoryview, vram_gpfn: int, width: int | None, height: int | None
    ) -> None:
        """
        Args:
            vram: memory of ours that the host can read, from the guest page `vram_gpfn` on.
            width, height: pixels; None: as the host says.

        Raises:
            DisplayClosedError: no version in common, no answer, or the host does not show a screen of this size.
            ValueError: the VRAM has no room for it.
        """
        self._conversation: Final[Conversation[ToVideoGuest]] = Conversation(channel, decode_for_guest)
        self._vram, self._address = vram, vram_gpfn * PAGE_BYTES
        self.wants_dirt = True
        self.width = self.height = self.pitch = 0
        self.pixels = vram[:0]
        self._context = 0
        self.version = self._agree()
        self._conversation.send(ResolutionRequest().encode())
        offered = self._conversation.wait_for(Resolutions, self._aside)
        self.largest = offered.sizes[offered.default]
        self._tell_location()
        self.resize(width or self.largest[0], height or self.largest[1])

    def _agree(self) -> int:
        for version in VERSIONS:
            self._conversation.send(VersionRequest(version).encode())
            answer = self._conversation.wait_for(VersionResponse, self._aside)
            if answer.accepted:
                return version
        raise DisplayClosedError("the host knows no version of this adapter that we know")

    def _tell_location(self) -> None:
        self._context += 1
        self._conversation.send(VramLocation(self._context, self._address).encode())
        while self._conversation.wait_for(VramLocationAck, self._aside).context != self._context:
            pass  # a successor of the host's may answer twice

    def resize(self, width: int, height: int) -> None:
        """From here on a screen of that size, black. Raises as the beginning does."""
        pitch = width * PIXEL_BYTES
        if pitch * height > len(self._vram):
            raise ValueError(f"{width} x {height} pixels in {len(self._vram)} bytes of VRAM")
        self.pixels = self._vram[: pitch * height]
        self.pixels[:] = bytes(pitch * height)
        self.width, self.height, self.pitch = width, height, pitch
        self._context += 1
        self._conversation.send(self._situation().encode())
        while self._conversation.wait_for(SituationAck, self._aside).context != self._context:
            pass

    def _situation(self) -> Situation:
        output = Output(True, 0, DEPTH, self.width, self.height, self.pitch)
        return Situation(self._context, (output,))

    def _aside(self, message: ToVideoGuest) -> None:
        match message:
            case FeatureChange(dirt=dirt, situation=situation):
                self.wants_dirt = dirt
                if situation and self.width:
                    self._conversation.send(self._situation().encode())

    # -- drawing

    def fill(self, x: int, y: int, width: int, height: int, colour: int) -> None:
        """`colour`: 0xRRGGBB. What lies beyond the screen is left out."""
        part = Rectangle(x, y, x + width, y + height).within(whole(self.width, self.height))
        if not part.is_empty:
            self._rows(part, colour.to_bytes(PIXEL_BYTES, "little") * part.width)

    def _rows(self, part: Rectangle, row: bytes) -> None:
        first = part.top * self.pitch + part.left * PIXEL_BYTES
        for at in range(first, first + part.height * self.pitch, self.pitch):
            self.pixels[at : at + len(row)] = row

    def dirty(self, x: int, y: int, width: int, height: int) -> None:
        """The host may look at these pixels from here on. DisplayClosedError."""
        for _ in range(HEARD_MAX):
            if (message := self._conversation.next(0)) is None:
                break
            self._aside(message)
        if self.wants_dirt:
            part = Rectangle(x, y, x + width, y + height).within(whole(self.width, self.height))
            if not part.is_empty:
                self._conversation.send(Dirt(0, (part,)).encode())

    @property
    def malformed(self) -> int:
        return self._conversation.malformed
