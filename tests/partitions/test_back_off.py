"""How restarts are spaced out, over any life that one who fails can lead."""

from hypothesis import given
from hypothesis import strategies as st

from partitions.stack.back_off import (
    CHANNEL_BREAKS,
    DRIVER_RESTARTS,
    WORKER_RESTARTS,
    BackOff,
    BackOffPolicy,
)

MS = 1_000_000
policies = st.builds(
    BackOffPolicy,
    failures_max=st.integers(1, 12),
    first_pause_ms=st.integers(1, 50),
    pause_ms_max=st.integers(50, 2_000),
    forgiven_after_ms=st.integers(1, 5_000),
)
lives = st.lists(
    st.one_of(st.none(), st.integers(0, 10_000)), max_size=60
)  # ms of service; None: never came up


@given(policy=policies, services_ms=lives)
def test_pauses_double_up_to_their_limit_and_good_service_is_a_new_beginning(
    policy: BackOffPolicy, services_ms: list[int | None]
) -> None:
    """Against the rule said a second time: a counter of failures in a row."""
    back_off, now_ns, in_a_row = BackOff(policy), 0, 0
    for service_ms in services_ms:
        if service_ms is not None:
            back_off.serves(now_ns)
            now_ns += service_ms * MS
            back_off.serves(now_ns)  # said again, it changes nothing
            if service_ms >= policy.forgiven_after_ms:
                in_a_row = 0
        in_a_row += 1
        due_ns = back_off.failed(now_ns)
        assert back_off.failures == in_a_row
        if in_a_row == policy.failures_max:
            assert due_ns is None
            break
        doubled = 0 if in_a_row == 1 else policy.first_pause_ms * 2 ** (in_a_row - 2)
        assert due_ns == now_ns + min(doubled, policy.pause_ms_max) * MS
        now_ns = due_ns
    assert back_off.given_up == (in_a_row == policy.failures_max)


@given(policy=policies, services_ms=lives)
def test_who_was_given_up_is_not_started_again_whatever_it_says(
    policy: BackOffPolicy, services_ms: list[int | None]
) -> None:
    back_off = BackOff(policy, failures=policy.failures_max)
    for service_ms in services_ms:
        if service_ms is not None:
            back_off.serves(0)
        assert back_off.failed((service_ms or 0) * MS) is None


@given(policy=policies, services_ms=lives, at=st.integers(0, 59))
def test_a_successor_goes_on_counting_where_its_predecessor_stopped(
    policy: BackOffPolicy, services_ms: list[int | None], at: int
) -> None:
    undisturbed, taken_over, now_ns = BackOff(policy), BackOff(policy), 0
    for turn, service_ms in enumerate(services_ms):
        for one in (undisturbed, taken_over):
            if service_ms is not None:
                one.serves(now_ns)
        if turn == at:
            taken_over = BackOff.from_state(policy, taken_over.to_state())
        now_ns += (service_ms or 0) * MS
        assert undisturbed.failed(now_ns) == taken_over.failed(now_ns)


def test_the_first_restart_is_at_once() -> None:
    for policy in (DRIVER_RESTARTS, WORKER_RESTARTS, CHANNEL_BREAKS):
        assert BackOff(policy).failed(5) == 5
