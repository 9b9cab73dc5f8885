"""Devices that one guest is not offered at the moment, and when each is offered to it again."""

from collections.abc import Callable, Iterator

from partitions.stack.offers import Offer, Withheld
from partitions.stack.stack_resources import RootResources


class WithheldOffers:
    """Of one guest, by name of the device. What is withheld for good stays here."""

    def __init__(self, root: RootResources, offer: Callable[[Offer], None]) -> None:
        """`offer`: makes one, when its time has come."""
        self._root, self._offer = root, offer
        self._withheld: dict[str, Withheld] = {}

    def __contains__(self, device: object) -> bool:
        return device in self._withheld

    def __iter__(self) -> Iterator[Withheld]:
        return iter(list(self._withheld.values()))

    def add(self, withheld: Withheld) -> None:
        self._withheld[withheld.offer.name] = withheld

    def forget(self, device: str) -> bool:
        """False: it was not withheld."""
        return self._withheld.pop(device, None) is not None

    def keep_for_good(self, device: str, reason: str) -> bool:
        """False: it is not withheld."""
        if (withheld := self._withheld.get(device)) is None:
            return False
        withheld.due_ns, withheld.reason = None, reason
        return True

    def schedule(self, withheld: Withheld) -> None:
        if withheld.due_ns is not None:
            if withheld.due_ns <= self._root.now_ns():
                self.offer_again(withheld)
            else:
                self._root.nursery.start_soon(self._offer_later, withheld)

    async def _offer_later(self, withheld: Withheld) -> None:
        assert withheld.due_ns is not None
        await self._root.sleep(max(withheld.due_ns - self._root.now_ns(), 0) / 1e9)
        self.offer_again(withheld)

    def offer_again(self, withheld: Withheld) -> None:
        """Unless it was forgotten meanwhile, or is to stay away."""
        name = withheld.offer.name
        if self._withheld.get(name) is withheld and withheld.due_ns is not None:
            del self._withheld[name]
            self._offer(withheld.offer)
