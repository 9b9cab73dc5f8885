"""The scheduler's policy: who has had how much, and who runs next. No I/O, no clock: samples in, a decision out.

Every partition but the root has *own work*, its process. A partition and all below it are a *group*. The root's
children share the processors by weight; inside a group the partition's own work and its children's groups share what
the group gets, own work by the partition's own weight. A group's reserve and cap are those of its partition, for all
of it together.

How: after each slice the CPU time that was really delivered is divided as it should have been (`divide`, from the
top of the tree down). What somebody should have had and did not is its *lag*. Whoever is furthest behind runs next. So
whatever the host takes away for itself, and however badly a stop or a timer was timed, is made up for in the
next slices: shares are exact in the long run and a few slices off at any moment.

Source of the properties: TLFS, "Scheduler". Weights act among those who want to run.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final

from runtime.hypervisor.scheduling_account import Account, Member, Sample
from runtime.hypervisor.scheduling_placement import Placement
from runtime.hypervisor.scheduling_shares import Claim, divide

SLICE_NS: Final = 10_000_000
IDLE_SLICE_NS: Final = 50_000_000  # while nobody wants a processor: how late we notice that somebody does
CATCH_UP_NS: Final = 100_000_000  # what a cap allowed, or a reserve promised, may be had so much later
_LAG_SLICES_MAX: Final = 32
_NO_SERVICE: Final[Mapping[int, int]] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Decision:
    """Until the next step: everybody runs but these."""

    held: frozenset[int]
    placed: Mapping[int, tuple[int, ...]]  # processor: who has it; who is idle has none
    confined: Mapping[
        int, tuple[int, ...]
    ]  # of those with several VPs, who got fewer processors than it may use
    next_ns: int  # when to sample again, from now


@dataclass(slots=True)
class _Domain:
    """Processors that are tied together by those who may use more than one, and who may use them."""

    processors: frozenset[int]
    accounts: list[Account] = field(default_factory=list)


class Policy:
    """One machine's. Deterministic: the same members and samples lead to the same decisions."""

    def __init__(self, processors: Iterable[int], slice_ns: int = SLICE_NS) -> None:
        self.processors: Final = frozenset(processors)
        self.slice_ns: Final = slice_ns
        self.accounts: dict[int, Account] = {}
        self._children: dict[int | None, list[int]] = {}
        self._top_down: list[int] = []
        self._domains: list[_Domain] = []
        self._is_flat = True
        self._is_capped = False

    def set_members(self, members: Sequence[Member]) -> None:
        """All there are now, in any order; each parent is among them. What is known of the old ones is kept."""
        known = self.accounts
        self.accounts = {}
        self._children = {}
        for member in sorted(members, key=lambda each: each.id):
            account = known.get(member.id) or Account(member)
            account.adopt(member)
            self.accounts[member.id] = account
            self._children.setdefault(member.parent, []).append(member.id)
        self._top_down = []
        following: list[int] = list(self._children.get(None, ()))
        while following:
            self._top_down += following
            following = [child for each in following for child in self._children.get(each, ())]
        self._is_flat = all(member.parent is None for member in members)
        self._is_capped = any(member.shares.is_capped for member in members)
        self._domains = _domains_of(account for account in self.accounts.values() if account.member.has_work)

    def step(
        self, elapsed_ns: int, samples: Mapping[int, Sample], service_ns: Mapping[int, int] = _NO_SERVICE
    ) -> Decision:
        """Account for the time since the step before, and decide for the next.

        Args:
            elapsed_ns: > 0.
            samples: of partitions with own work; one that is missing used nothing.
            service_ns: what the hypervisor spent on each; it counts as used, and says nothing of what each wants.
        """
        for each in self.accounts.values():
            each.watch(samples.get(each.member.id, _NOTHING), elapsed_ns, self.slice_ns)
        used_ns = {
            each: samples.get(each, _NOTHING).used_ns + service_ns.get(each, 0) for each in self.accounts
        }
        self._charge_caps(elapsed_ns, used_ns)
        for domain in self._domains:
            self._settle(domain, elapsed_ns, used_ns, service_ns)
        return self._choose()

    def let_all(self) -> None:
        """The last decision was not carried out: nobody was held."""
        for each in self.accounts.values():
            each.held = False

    # -- accounting

    def _charge_caps(self, elapsed_ns: int, used_ns: Mapping[int, int]) -> None:
        if not self._is_capped:
            return
        used: dict[int | None, int] = {}
        for member in reversed(self._top_down):
            account = self.accounts[member]
            group_used = used.pop(member, 0) + used_ns[member]
            parent = account.member.parent
            used[parent] = used.get(parent, 0) + group_used
            if (cap := account.cap) is not None:
                account.credit_ns = min(account.credit_ns + cap * elapsed_ns - group_used, cap * CATCH_UP_NS)
            else:
                account.credit_ns = 0.0

    def _settle(
        self,
        domain: _Domain,
        elapsed_ns: int,
        used_ns: Mapping[int, int],
        service_ns: Mapping[int, int],
    ) -> None:
        """Who should have had how much of what was delivered here; the difference is lag."""
        contenders: list[Account] = []
        used: list[int] = []
        for each in domain.accounts:
            mine = used_ns[each.member.id]
            if each.is_idle:  # nobody saves up while asleep; what it had too much is forgiven in time
                each.due_ns += mine
                each.lag_ns = min(each.lag_ns, 0.0) * max(1 - elapsed_ns / CATCH_UP_NS, 0.0)
            else:
                contenders.append(each)
                used.append(mine)
        if not contenders:
            return
        delivered = sum(used)
        wants = [each.wanted * elapsed_ns + service_ns.get(each.member.id, 0) for each in contenders]
        due = self._divide(delivered, contenders, wants, elapsed_ns)
        left = delivered - sum(due)
        if left > 0:  # nobody else could have used it: it was nobody's loss
            excess = [max(mine - should, 0.0) for mine, should in zip(used, due, strict=True)]
            part = min(left / (sum(excess) or left), 1.0)
            due = [should + part * more for should, more in zip(due, excess, strict=True)]
        total = 0.0
        for each, mine, should in zip(contenders, used, due, strict=True):
            each.due_ns += should
            each.lag_ns += should - mine
            if each.lag_ns > 0 and not each.held and not each.is_busy and not each.is_crowded:
                each.lag_ns /= 2  # it was let, and slept: its own loss
            total += each.lag_ns
        mean, furthest = total / len(contenders), 0.0
        for each in contenders:
            each.lag_ns -= mean
            furthest = max(furthest, abs(each.lag_ns))
        if (
            furthest > _LAG_SLICES_MAX * self.slice_ns
        ):  # not to be had with these processors: keep the order alone
            for each in contenders:
                each.lag_ns *= _LAG_SLICES_MAX * self.slice_ns / furthest

    def _divide(
        self, delivered: int, contenders: list[Account], wants: list[float], elapsed_ns: int
    ) -> list[float]:
        """What each should have had."""
        if self._is_flat:
            return self._among(delivered, contenders, wants, elapsed_ns)
        most = {each.member.id: want for each, want in zip(contenders, wants, strict=True)}
        groups: dict[int, float] = {}  # the most of each group that has a contender
        for member in reversed(self._top_down):
            children = self._children.get(member, ())
            if total := most.get(member, 0.0) + sum(groups.get(child, 0.0) for child in children):
                groups[member] = total
        amounts: dict[int | None, float] = {None: delivered}
        for parent in (None, *self._top_down):
            if amounts.get(parent, 0.0) <= 0:
                continue
            children = [child for child in self._children.get(parent, ()) if child in groups]
            accounts = [self.accounts[child] for child in children]
            mosts = [groups[child] for child in children]
            own = parent if parent in most else None
            if own is None:
                divided = self._among(amounts[parent], accounts, mosts, elapsed_ns)
            elif accounts:
                work = Claim(self.accounts[own].weight, 0.0, most[own])
                divided = self._among(amounts[parent], accounts, mosts, elapsed_ns, work)
                amounts[own] = divided[-1]
            else:
                continue  # all its own
            amounts |= zip(children, divided, strict=False)
        return [amounts.get(each.member.id, 0.0) for each in contenders]

    def _among(
        self,
        amount: float,
        groups: list[Account],
        mosts: list[float],
        elapsed_ns: int,
        own_work: Claim | None = None,
    ) -> list[float]:
        """Divide among groups, and own work beside them, which comes last."""
        claims: list[Claim] = []
        for account, wanted in zip(groups, mosts, strict=True):
            most = wanted
            if account.cap is not None:
                most = min(wanted, account.cap * elapsed_ns + account.spare_ns)
            least = min(account.reserve * elapsed_ns + account.owed_ns, most) if account.reserve else 0.0
            claims.append(Claim(account.weight, least, most))
        if own_work is not None:
            claims.append(own_work)
        divided = divide(amount, claims)
        # The host may have taken the processor away: what is missing of a reserve stays owed for a while, and what a
        # cap would have allowed stays allowed.
        for account, got in zip(groups, divided, strict=False):
            if account.reserve:
                owed = account.owed_ns + account.reserve * elapsed_ns - got
                account.owed_ns = min(max(owed, 0.0), account.reserve * CATCH_UP_NS)
            else:
                account.owed_ns = 0.0
            if account.cap is not None:
                spare = account.spare_ns + account.cap * elapsed_ns - got
                account.spare_ns = min(max(spare, 0.0), account.cap * CATCH_UP_NS)
        return divided

    # -- deciding

    def _choose(self) -> Decision:
        placement = Placement(self.processors, self.slice_ns)
        held: set[int] = set()
        wide: list[int] = []  # with several VPs, on fewer processors than they may use
        contended = False
        spent = self._out_of_credit()
        candidates = [each for each in self.accounts.values() if each.member.has_work]
        for each in sorted(candidates, key=self._turn):
            here = each.member.id
            if here in spent:
                held.add(here)
                contended = True
            elif not each.is_idle:
                contended = True
                if not (chosen := placement.place(each)):
                    held.add(here)
                elif each.member.vps > 1 and len(chosen) < len(each.processors):
                    wide.append(here)
            each.held = here in held
        placed = placement.result()
        confined = {  # their other threads would crowd out who has the other processors
            each: tuple(processor for processor in sorted(placed) if each in placed[processor])
            for each in wide
        }
        return Decision(frozenset(held), placed, confined, self.slice_ns if contended else IDLE_SLICE_NS)

    def _turn(self, account: Account) -> tuple[bool, float, int]:
        """Who sleeps by itself, and had not more than its due, comes before those who would take all there is."""
        modest = not account.is_busy and account.lag_ns > -self.slice_ns / 2
        return not modest, -account.lag_ns, account.member.id

    def _out_of_credit(self) -> set[int]:
        """Everybody in a group that has used up what its cap allows so far."""
        spent: set[int] = set()
        if self._is_capped:
            for member in self._top_down:
                account = self.accounts[member]
                if account.member.parent in spent or (account.cap is not None and account.credit_ns <= 0):
                    spent.add(member)
        return spent


_NOTHING: Final = Sample(0, 0)


def _domains_of(accounts: Iterable[Account]) -> list[_Domain]:
    domains: list[_Domain] = []
    for account in accounts:
        merged = _Domain(account.member.processors)
        apart: list[_Domain] = []
        for domain in domains:
            if domain.processors & merged.processors:
                merged = _Domain(domain.processors | merged.processors, domain.accounts + merged.accounts)
            else:
                apart.append(domain)
        merged.accounts.append(account)
        domains = [*apart, merged]
    for domain in domains:
        domain.accounts.sort(key=lambda each: each.member.id)
    return domains
