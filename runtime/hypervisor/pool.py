"""Deposited pages of one partition: from them whatever the broker keeps for it is paid."""

from __future__ import annotations

from dataclasses import dataclass

from runtime.abi import HvStatus
from runtime.hypervisor.replies import Refused


@dataclass(slots=True)
class Pool:
    """Pages of one partition. `require` refuses, `charge` and `refund` must not fail."""

    available: int = 0
    in_use: int = 0

    def require(self, pages: int) -> None:
        if pages > self.available:
            raise Refused(HvStatus.INSUFFICIENT_MEMORY)

    def charge(self, pages: int) -> None:
        assert 0 <= pages <= self.available
        self.available -= pages
        self.in_use += pages

    def refund(self, pages: int) -> None:
        assert 0 <= pages <= self.in_use
        self.available += pages
        self.in_use -= pages

    def give(self, other: Pool, pages: int) -> None:
        assert 0 <= pages <= self.available
        self.available -= pages
        other.available += pages
