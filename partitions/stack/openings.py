"""The openings of one guest's channels: what each takes for as long as it lasts, and which one is the last."""

from collections.abc import Callable, Mapping
from dataclasses import replace

from partitions.stack.channel_host import ChannelHost, Opening
from partitions.stack.stack_resources import RootResources


class Openings:
    """By relid, of channels that are open or on their way."""

    def __init__(self, root: RootResources, host_of: Callable[[int], ChannelHost]) -> None:
        """`host_of(relid)`: who serves that channel. LookupError: there is no such offer."""
        self._root, self._host_of = root, host_of
        self._openings: dict[int, Opening] = {}

    def __contains__(self, relid: object) -> bool:
        return relid in self._openings

    def __getitem__(self, relid: int) -> Opening:
        """KeyError: no event flag could be had for it."""
        return self._openings[relid]

    def get(self, relid: int) -> Opening | None:
        return self._openings.get(relid)

    def items(self) -> list[tuple[int, Opening]]:
        return list(self._openings.items())

    def take(self, relid: int, connection_id: int) -> None:
        """A new one. LookupError: its host has no event flag left."""
        flag = self._host_of(relid).flags.take()
        self._openings[relid] = Opening(next(self._root.numbers), flag, connection_id)

    def renumber(self, relid: int) -> None:
        """As another try: its host may know the one before. Does nothing where there is none."""
        if relid in self._openings:
            self._openings[relid] = replace(self._openings[relid], number=next(self._root.numbers))

    def forget(self, relid: int) -> None:
        """It is over, or came to nothing; its event flag is free again."""
        if (opening := self._openings.pop(relid, None)) is not None:
            self._host_of(relid).flags.free(opening.flag)

    def clear(self) -> None:
        """All are over, with who had their flags."""
        self._openings.clear()

    def is_current(self, relid: int, number: int) -> bool:
        """Whether news of that number are about this opening, and no earlier one."""
        return (opening := self._openings.get(relid)) is not None and opening.number == number

    def to_state(self) -> dict[int, list[int]]:
        return {relid: opening.to_state() for relid, opening in self._openings.items()}

    def adopt(self, state: Mapping[int, list[int]]) -> None:
        """A predecessor's `to_state`."""
        self._openings = {relid: Opening(*opening) for relid, opening in state.items()}
