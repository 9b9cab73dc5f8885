"""How often, and after what pauses, something that fails is started again. No clock: the time comes in.

The first restart is at once. Then the pause doubles, from `first_pause_ms` up to `pause_ms_max`. Who served well for
`forgiven_after_ms` starts with a clean record; who fails `failures_max` times without that is given up for good.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Self

_MS: Final = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class BackOffPolicy:
    failures_max: int  # the last of which is the end
    first_pause_ms: int  # before the second restart
    pause_ms_max: int
    forgiven_after_ms: int  # of service without a failure

    def pause_ms(self, failures: int) -> int:
        """Before the restart that follows the `failures`-th failure, counted from 1."""
        if failures <= 1:
            return 0
        return min(self.first_pause_ms << min(failures - 2, 32), self.pause_ms_max)


DRIVER_FAILURES_MAX: Final = 10
DRIVER_PAUSE_MS_MAX: Final = 1_000
DRIVER_FORGIVEN_AFTER_MS: Final = 1_000
DRIVER_RESTARTS: Final = BackOffPolicy(
    failures_max=DRIVER_FAILURES_MAX,
    first_pause_ms=10,
    pause_ms_max=DRIVER_PAUSE_MS_MAX,
    forgiven_after_ms=DRIVER_FORGIVEN_AFTER_MS,
)

# A worker that fails in the middle of a request keeps its device from all others, so patience with it is shorter.
WORKER_FAILURES_MAX: Final = 6
WORKER_PAUSE_MS_MAX: Final = 100
WORKER_FORGIVEN_AFTER_MS: Final = 1_000
WORKER_RESTARTS: Final = BackOffPolicy(
    failures_max=WORKER_FAILURES_MAX,
    first_pause_ms=5,
    pause_ms_max=WORKER_PAUSE_MS_MAX,
    forgiven_after_ms=WORKER_FORGIVEN_AFTER_MS,
)

# A guest that breaks its ring may open the device's channel again, but ever later.
CHANNEL_BREAKS_MAX: Final = 16
CHANNEL_PAUSE_MS_MAX: Final = 1_000
CHANNEL_FORGIVEN_AFTER_MS: Final = 60_000
CHANNEL_BREAKS: Final = BackOffPolicy(
    failures_max=CHANNEL_BREAKS_MAX,
    first_pause_ms=5,
    pause_ms_max=CHANNEL_PAUSE_MS_MAX,
    forgiven_after_ms=CHANNEL_FORGIVEN_AFTER_MS,
)


@dataclass(slots=True)
class BackOff:
    """The record of one that may fail. All times are CLOCK_MONOTONIC, in ns."""

    policy: BackOffPolicy
    failures: int = 0  # since it last was forgiven
    serving_since_ns: int | None = None  # None: it does not serve

    @property
    def given_up(self) -> bool:
        return self.failures >= self.policy.failures_max

    def serves(self, now_ns: int) -> None:
        """It is up. Said again, it changes nothing."""
        if self.serving_since_ns is None:
            self.serving_since_ns = now_ns

    def failed(self, now_ns: int) -> int | None:
        """It failed. When to start it again; None: never."""
        since, self.serving_since_ns = self.serving_since_ns, None
        if self.given_up:
            return None
        if since is not None and now_ns - since >= self.policy.forgiven_after_ms * _MS:
            self.failures = 0
        self.failures += 1
        return None if self.given_up else now_ns + self.policy.pause_ms(self.failures) * _MS

    def to_state(self) -> list[int | None]:
        return [self.failures, self.serving_since_ns]

    @classmethod
    def from_state(cls, policy: BackOffPolicy, state: Any) -> Self:
        failures, serving_since_ns = state
        return cls(policy, failures, serving_since_ns)


def describe(back_off: BackOff, due_ns: int | None) -> Mapping[str, Any]:
    """For `partvisor show`."""
    if back_off.given_up:
        word = "failed"
    else:
        word = "serving" if due_ns is None else "restarting"
    return {"service": word, "failures": back_off.failures}
