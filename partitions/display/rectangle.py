"""A part of a screen, and a bounded set of such parts that never forgets a pixel."""

from dataclasses import dataclass
from typing import Final

RECTANGLES_MAX: Final = 16  # that are remembered one by one; beyond it what they all lie in


@dataclass(frozen=True, slots=True)
class Rectangle:
    """In pixels; right and bottom are the first ones outside. Without area where they are not beyond left and top."""

    left: int
    top: int
    right: int
    bottom: int

    @property
    def width(self) -> int:
        return self.right - self.left

    @property
    def height(self) -> int:
        return self.bottom - self.top

    @property
    def is_empty(self) -> bool:
        return self.width <= 0 or self.height <= 0

    def within(self, other: "Rectangle") -> "Rectangle":
        """What of it lies in the other one."""
        return Rectangle(
            max(self.left, other.left),
            max(self.top, other.top),
            min(self.right, other.right),
            min(self.bottom, other.bottom),
        )

    def holds(self, other: "Rectangle") -> bool:
        return (
            self.left <= other.left
            and self.top <= other.top
            and self.right >= other.right
            and self.bottom >= other.bottom
        )

    def around(self, other: "Rectangle") -> "Rectangle":
        """The smallest that holds both."""
        return Rectangle(
            min(self.left, other.left),
            min(self.top, other.top),
            max(self.right, other.right),
            max(self.bottom, other.bottom),
        )


def whole(width: int, height: int) -> Rectangle:
    return Rectangle(0, 0, width, height)


class Region:
    """What one viewer has not seen yet."""

    def __init__(self) -> None:
        self._parts: list[Rectangle] = []

    def add(self, part: Rectangle) -> None:
        if part.is_empty or any(one.holds(part) for one in self._parts):
            return
        self._parts = [one for one in self._parts if not part.holds(one)]
        self._parts.append(part)
        if len(self._parts) > RECTANGLES_MAX:
            bound = self._parts[0]
            for one in self._parts[1:]:
                bound = bound.around(one)
            self._parts = [bound]

    def take(self, within: Rectangle) -> list[Rectangle]:
        """What of it lies in there; nothing is left."""
        parts, self._parts = self._parts, []
        inside = (one.within(within) for one in parts)
        return [one for one in inside if not one.is_empty]

    @property
    def parts(self) -> tuple[Rectangle, ...]:
        return tuple(self._parts)
