"""What a server's account of a partition gives way to: processor time that the partition has elsewhere.

A partition with a cap runs, and others work for it. Each of those who do keeps to the cap; if they knew nothing of each
other, it would have its cap once in each of them. So each takes what the others told it off what it gives. But never
all of it: one that burns its own share, in a process whose quota nobody can lower, is still served.
"""

from typing import Final

from bus.native import ServiceBudget

WHOLE_SHARE: Final = 0x10000  # a processor, as ServiceBudget.share counts
YIELDED_PERCENT: Final = 75  # of a share, at most
USE_INTERVAL_MS: Final = 50  # between two looks at what partitions with a cap had
QUIET_INTERVAL_MS: Final = 100  # the same, while none of them does anything


def yield_to(budget: ServiceBudget, used_ns: int, elapsed_ns: int) -> int:
    """Its partition had so much elsewhere, in so long. What of it was taken off, in ns. Any thread."""
    most_ns = budget.share * min(elapsed_ns, QUIET_INTERVAL_MS * 1_000_000) // WHOLE_SHARE
    yielded_ns = min(used_ns, most_ns * YIELDED_PERCENT // 100)
    if yielded_ns > 0:
        budget.charge(yielded_ns)
    return max(yielded_ns, 0)
