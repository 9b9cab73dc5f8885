"""What is held against what is granted: what nobody can explain, and what goes beyond the config."""

import os
from collections.abc import Iterable
from dataclasses import dataclass

from runtime.authority.vocabulary import Grant, Holding, Kind


@dataclass(frozen=True, slots=True)
class Excess:
    """A holding that should not be."""

    held: Holding
    why: str

    def row(self) -> dict[str, object]:
        return self.held.row() | {"why": self.why}


class Allowed:
    """A config's grants, to be asked about one holding after the other."""

    def __init__(self, grants: Iterable[Grant], *, devices_known: bool = True) -> None:
        """`devices_known`: whether pages are named by the channel they are of; else by their owner alone."""
        self._exact: dict[tuple[str, Kind, str | None], str] = {}
        self._places: dict[tuple[str, Kind], list[Grant]] = {}
        for grant in grants:
            keys = [(grant.process, grant.kind, grant.subject)]
            if not devices_known and grant.kind is Kind.PAGES and grant.subject is not None:
                keys.append((grant.process, grant.kind, grant.subject.partition(": ")[0]))
            for key in keys:
                self._exact[key] = max(self._exact.get(key, ""), grant.access, key=len)
            if grant.kind is Kind.FILE:
                self._places.setdefault((grant.process, grant.kind), []).append(grant)

    def excess(self, held: Holding) -> Excess | None:
        """None: it is granted."""
        if held.kind is Kind.OWN:
            return None
        if held.kind is Kind.UNEXPLAINED:
            return Excess(held, "unexplained")
        if not held.sanctioned:
            return Excess(held, "the hypervisor has not handed it out, or has taken it back")
        access = max((self._exact.get(key, "") for key in _keys(held)), key=len)
        if held.kind is Kind.FILE:
            access = max(access, self._of_file(held), key=len)
        if not access:
            return Excess(held, "the config does not grant it")
        if len(held.access) > len(access):
            return Excess(held, "the config grants reading alone")
        return None

    def _of_file(self, held: Holding) -> str:
        for grant in self._places.get((held.process, held.kind), ()):
            place = grant.subject or ""
            if (
                held.subject.startswith(place)
                if place.endswith("/")
                else os.path.realpath(place) == held.subject
            ):
                return grant.access
        return ""


def _keys(held: Holding) -> list[tuple[str, Kind, str | None]]:
    """Under which it may be granted: by name, as any of its owner's, as anything of the kind."""
    keys: list[tuple[str, Kind, str | None]] = [
        (held.process, held.kind, held.subject),
        (held.process, held.kind, None),
    ]
    if held.kind is Kind.PAGES:
        keys.append((held.process, held.kind, held.subject.partition(": ")[0]))
    return keys


def find_excess(
    holdings: Iterable[Holding], grants: Iterable[Grant], *, devices_known: bool = True
) -> list[Excess]:
    allowed = Allowed(grants, devices_known=devices_known)
    return [excess for held in holdings if (excess := allowed.excess(held)) is not None]
