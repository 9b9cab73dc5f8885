"""What a partition may ask for of the processors, and how an amount is divided by what each asked for. Pure arithmetic.

Source: TLFS, "Scheduler": weight, reserve and cap, the last two as fractions of one processor per VP.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from runtime.abi import CPU_WEIGHT_DEFAULT, WHOLE_PROCESSOR


@dataclass(frozen=True, slots=True)
class Shares:
    """The three scheduler properties of a partition."""

    weight: int = CPU_WEIGHT_DEFAULT
    reserve: int = 0  # of each VP, in 1/0x10000 of a processor
    cap: int = WHOLE_PROCESSOR  # the same; WHOLE_PROCESSOR: none

    @property
    def is_capped(self) -> bool:
        return self.cap < WHOLE_PROCESSOR

    def reserve_of(self, vps: int) -> float:
        """In processors."""
        return self.reserve * vps / WHOLE_PROCESSOR

    def cap_of(self, vps: int) -> float:
        """In processors; only of one that is capped."""
        return self.cap * vps / WHOLE_PROCESSOR


DEFAULT_SHARES: Final = Shares()


class Claim(NamedTuple):
    """One contender's part in a division. A tuple, as many are made."""

    weight: float  # > 0
    least: float  # what it gets before anybody gets by weight
    most: float  # what it can use; >= least


def divide(amount: float, claims: Sequence[Claim]) -> list[float]:
    """Divide by weight, nobody below `least` or above `most`. What cannot be used by anybody is left over.

    Where not even the `least` of all fit, each gets the same fraction of its own.
    """
    weights = leasts = mosts = 0.0
    for weight, least, most in claims:
        weights += weight
        leasts += least
        mosts += most
    if leasts >= amount:
        scale = amount / leasts if leasts > 0 else 0.0
        return [claim.least * scale for claim in claims]
    if mosts <= amount:
        return [claim.most for claim in claims]
    shares = [amount * claim.weight / weights for claim in claims]
    if all(claim.least <= share <= claim.most for claim, share in zip(claims, shares, strict=True)):
        return shares
    open_claims = list(range(len(claims)))
    left = amount
    while open_claims:
        # Of those who would break a bound, the side with the greater breach is bound for good: freezing it moves the
        # level towards the others, so no claim that is frozen would ever want to leave its bound again.
        level = left / sum(claims[index].weight for index in open_claims)
        breach = 0.0
        for index in open_claims:
            claim = claims[index]
            shares[index] = min(max(claim.weight * level, claim.least), claim.most)
            breach += shares[index] - claim.weight * level
        if breach > 0:
            frozen = [index for index in open_claims if shares[index] == claims[index].least]
        elif breach < 0:
            frozen = [index for index in open_claims if shares[index] == claims[index].most]
        else:
            break
        left -= sum(shares[index] for index in frozen)
        open_claims = [index for index in open_claims if index not in frozen]
        if left <= 0:  # rounding alone
            left = 0.0
    return shares
