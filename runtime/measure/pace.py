"""How far a benchmark of many rounds is, and how long it will take: in words, every two seconds at most."""

import time
from collections.abc import Callable
from typing import Final

PROGRESS_S: Final = 2.0
_BELIEVED_FROM: Final = 0.2  # samples differ a lot, so the first few say little of the rest


class Pace:
    """By experience first, then by what it took so far. It says how long it will take when it is made."""

    def __init__(
        self, rounds: int, each: int, sample_s: float, what: str, say: Callable[[str], None]
    ) -> None:
        """Args: samples of a round, how long one takes by experience, what they are called ("rows")."""
        self._rounds, self._each, self._what, self._say = rounds, each, what, say
        self._expected_s = rounds * each * sample_s
        self._begin = self._said = time.monotonic()
        say(
            f"{each} {what}, {f'{rounds} rounds' if rounds > 1 else 'one round'}: about {text(self._expected_s)}"
        )

    def tell(self, round_number: int, index: int) -> None:
        """Before each sample: the round and its place in it, both from 0."""
        now = time.monotonic()
        if now - self._said < PROGRESS_S:
            return
        self._said, took = now, now - self._begin
        done = (round_number * self._each + index) / (self._rounds * self._each)
        whole = took / done if done >= _BELIEVED_FROM else self._expected_s
        left = text(max(whole * (1 - done), 1))
        self._say(
            f"round {round_number + 1} of {self._rounds}, {index} of {self._each} {self._what}, about {left} to go"
        )


def text(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"
