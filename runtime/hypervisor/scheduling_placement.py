"""Who gets which processor for the next slice: partitions ask in the order of their turns, and get what is left."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from runtime.hypervisor.scheduling_account import IDLE_DEMAND, Account

_SHARED_ROOM_MIN: Final = 0.25  # of a processor: what is left beside somebody who sleeps now and then
_ALONE_LAG_SLICES: Final = 2  # whoever is so far behind gets its processor alone


class Placement:
    """Of one slice."""

    def __init__(self, processors: Iterable[int], slice_ns: int) -> None:
        self._slice_ns: Final = slice_ns
        self._room = dict.fromkeys(sorted(processors), 1.0)  # what is left of each
        self._placed: dict[int, list[Account]] = {}
        self._alone: set[int] = set()  # partitions that are so far behind that nobody else may be beside them

    def place(self, account: Account) -> tuple[int, ...]:
        """Processors for one; () if there is none. A later call may move it to another one that it may use."""
        need = account.need
        chosen: list[int] = []
        room = self._room
        choice = account.processors
        if len(choice) > 1:
            choice = tuple(sorted(choice, key=lambda each: -room[each]))  # stable: then by number
        for processor in choice:
            wanted = min(need, 1.0)
            if room[processor] < min(wanted, _SHARED_ROOM_MIN) or self._is_kept(processor):
                continue
            taken = min(room[processor], wanted)
            room[processor] -= taken
            need -= taken
            chosen.append(processor)
            if need < IDLE_DEMAND:
                break
        if not chosen and need <= 1.0:
            chosen = self._make_room(account, set())
        for processor in chosen:
            self._placed.setdefault(processor, []).append(account)
        if account.lag_ns > _ALONE_LAG_SLICES * self._slice_ns:
            self._alone.add(account.member.id)
        return tuple(chosen)

    def result(self) -> Mapping[int, tuple[int, ...]]:
        return {
            processor: tuple(each.member.id for each in there)
            for processor, there in self._placed.items()
            if there
        }

    def _is_kept(self, processor: int) -> bool:
        return bool(self._alone) and any(
            each.member.id in self._alone for each in self._placed.get(processor, ())
        )

    def _make_room(self, account: Account, seen: set[int]) -> list[int]:
        """A processor that its one owner can leave for another, and so on: the augmenting path of a matching."""
        for processor in account.processors:
            there = self._placed.get(processor, [])
            if processor in seen or len(there) != 1 or not there[0].is_busy or there[0].need > 1.0:
                continue
            seen.add(processor)
            owner = there[0]
            free = next((each for each in owner.processors if self._room[each] >= 1.0), None)
            if free is None:
                moved = self._make_room(owner, seen)
                if not moved:
                    continue
                free = moved[0]
            else:
                self._room[free] -= 1.0
            there.remove(owner)
            self._placed.setdefault(free, []).append(owner)
            return [processor]  # which is as full as before, of another one
        return []
