"""The verified load on real storage servers: it does what its plan says, and its history tells all of it."""

import threading
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from partitions.guests.verified import OPERATIONS_PER_SECOND_MAX, Plan
from partitions.storage.backends import MemoryBackend
from partitions.storage.disk import Disk
from runtime.chaos.blocks import BLOCK_BYTES
from runtime.chaos.checker import check
from runtime.chaos.history import Ending, History, OperationKind, read_history
from runtime.chaos.register_conflicts import Kind
from runtime.chaos.verdict import summary
from tests.partitions.mortal_storage import honest, image_of, load, served
from tests.partitions.storage_pair import connected
from tests.patience import until

BLOCKS = 64
DATA_PAGES = 256


def backend() -> MemoryBackend:
    return MemoryBackend(BLOCKS * BLOCK_BYTES)


def load_once(disk_backend: MemoryBackend, plan: Plan, path: Path, **channel: Any) -> History:
    with connected(disk_backend, data_pages=DATA_PAGES, ring_pages=16, **channel) as pair:
        disk = Disk(pair.guest, pair.data, pair.data_gpfn)
        result, history = load(disk, plan, path)
        assert (result.suspects, result.failed, result.gave_up) == (0, 0, False)
        assert disk.statistics()["in_flight"] == 0
    return history


@pytest.mark.parametrize(
    ("depth", "blocks_max", "channel"),
    [
        (1, 1, {}),
        (32, 4, {}),
        (32, 4, {"waiting": "block"}),
        (32, 4, {"fast": False}),
        (16, 16, {"fast": False, "waiting": "block"}),
    ],
)
def test_a_load_on_an_honest_server_passes(
    tmp_path: Path, depth: int, blocks_max: int, channel: dict[str, Any]
) -> None:
    with backend() as disk:
        plan = Plan(seed=5, blocks=BLOCKS, depth=depth, operations=4000, blocks_max=blocks_max)
        history = load_once(disk, plan, tmp_path / "history", **channel)
        verdict = check([history], image=image_of(disk, BLOCKS))
    assert verdict.passed, summary(verdict)
    assert history.ending is Ending.FINISHED
    assert verdict.completed == verdict.operations == 4000
    assert min(verdict.reads, verdict.durable_writes, verdict.flushes, verdict.discards) > 0
    assert verdict.writes > verdict.durable_writes
    assert verdict.blocks == BLOCKS
    assert {operation.blocks for operation in history.operations} == set(range(blocks_max + 1))


def most_in_flight(history: History) -> int:
    events = [(operation.invoked_ns, 1) for operation in history.operations]
    events += [(operation.completed_ns or 0, -1) for operation in history.operations]
    now = most = 0
    for _, change in sorted(events):
        now += change
        most = max(most, now)
    return most


@pytest.mark.parametrize("depth", [1, 7, 32])
def test_as_many_are_in_flight_as_the_plan_says(tmp_path: Path, depth: int) -> None:
    with backend() as disk:
        plan = Plan(seed=5, blocks=BLOCKS, depth=depth, operations=1000)
        assert most_in_flight(load_once(disk, plan, tmp_path / "history")) == depth


def test_the_seed_replays_the_requests(tmp_path: Path) -> None:
    def asked(seed: int, path: Path) -> list[tuple[OperationKind, int, int]]:
        with backend() as disk:
            history = load_once(disk, Plan(seed=seed, blocks=BLOCKS, operations=500), path)
        return [(op.kind, op.first_block, op.blocks) for op in history.operations]

    once = asked(1, tmp_path / "once")
    assert once == asked(1, tmp_path / "again")
    assert once != asked(2, tmp_path / "other")


def test_the_mix_is_kept(tmp_path: Path) -> None:
    with backend() as disk:
        plan = Plan(
            seed=1, blocks=BLOCKS, operations=2000, read=10, write=60, flush=30, discard=0, durable=30
        )
        history = load_once(disk, plan, tmp_path / "history")
    share = Counter(operation.kind for operation in history.operations)
    assert share[OperationKind.DISCARD] == 0
    durable = share[OperationKind.WRITE_DURABLE]
    assert share[OperationKind.WRITE] > share[OperationKind.FLUSH] > durable > share[OperationKind.READ] > 0
    verdict = check([history])
    assert verdict.durable_writes == durable
    assert verdict.writes == durable + share[OperationKind.WRITE]


def test_durable_writes_have_the_bit_and_no_others(tmp_path: Path) -> None:
    """Counted where the medium is: no flush was asked for."""
    flushed: list[int] = []

    class Counting(MemoryBackend):
        def flush(self) -> None:
            flushed.append(1)

    with Counting(BLOCKS * BLOCK_BYTES) as disk:
        plan = Plan(seed=1, blocks=BLOCKS, operations=1000, read=50, write=50, flush=0, discard=0, durable=20)
        history = load_once(disk, plan, tmp_path / "history")
    share = Counter(operation.kind for operation in history.operations)
    assert len(flushed) == share[OperationKind.WRITE_DURABLE] > 0


def test_two_guests_on_one_disk(tmp_path: Path) -> None:
    """Over two channels at a time; each history alone would be nonsense, both together are a disk's."""
    histories: dict[int, History] = {}

    def guest(seed: int, disk: MemoryBackend) -> None:
        plan = Plan(seed=seed, blocks=8, depth=8, operations=3000)
        histories[seed] = load_once(disk, plan, tmp_path / f"history{seed}")

    with backend() as disk:
        threads = [threading.Thread(target=guest, args=(seed, disk)) for seed in (1, 2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        image = image_of(disk, 8)
    verdict = check(list(histories.values()), image=image, tearing=True)
    assert verdict.passed, summary(verdict)
    assert Kind.INVENTED in check([histories[1]], image=image, tearing=True).counts


def test_only_the_blocks_of_the_plan_are_touched(tmp_path: Path) -> None:
    with backend() as disk:
        plan = Plan(seed=1, first_block=10, blocks=5, operations=500)
        history = load_once(disk, plan, tmp_path / "history")
        verdict = check([history], image=image_of(disk, BLOCKS))
        image = image_of(disk, BLOCKS)
    assert verdict.passed
    assert not any(value for block, value in image.items() if not 10 <= block < 15)


def test_a_load_by_time_ends(tmp_path: Path) -> None:
    with backend() as disk:
        plan = Plan.from_args({"seed": 1, "blocks": BLOCKS, "seconds": 0.1})
        assert plan.operations == OPERATIONS_PER_SECOND_MAX * 0.1 + 1
        history = load_once(disk, plan, tmp_path / "history")
    assert history.ending is Ending.FINISHED
    assert 0 < len(history.operations) < plan.operations


def test_a_channel_that_closes_ends_the_load_with_everything_noted(tmp_path: Path) -> None:
    with backend() as disk_backend, connected(disk_backend, data_pages=DATA_PAGES, ring_pages=16) as pair:
        disk = Disk(pair.guest, pair.data, pair.data_gpfn)

        def close() -> None:
            until(lambda: pair.vsp.statistics()["requests"] > 1000)
            pair.guest.close()

        closer = threading.Thread(target=close)
        closer.start()
        result, history = load(disk, Plan(seed=1, blocks=BLOCKS, operations=1_000_000), tmp_path / "history")
        closer.join()
    assert result.gave_up
    assert history.ending is Ending.GAVE_UP
    assert all(operation.outcome is not None for operation in history.operations)
    assert set(check([history]).counts) == {Kind.HUNG}
    assert check([history], killed={1}).passed


def test_the_history_is_whole_while_the_load_still_runs(tmp_path: Path) -> None:
    """Whoever reads it at any moment sees what has happened until then."""
    seen: list[int] = []
    path, done = tmp_path / "history", threading.Event()

    def watch() -> None:
        while not done.wait(0.01):
            if path.exists() and any(path.read_bytes()[:8]):  # it has its size before it has its head
                seen.append(len(read_history(path).operations))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        with backend() as disk:
            load_once(disk, Plan(seed=1, blocks=BLOCKS, operations=5000), path)
    finally:
        done.set()
        watcher.join()
    assert seen == sorted(seen)


@pytest.mark.parametrize(
    ("args", "complaint"),
    [
        ({"seed": 0, "blocks": 4, "operations": 1}, "seed 0"),
        ({"seed": 1 << 23, "blocks": 4, "operations": 1}, "seed"),
        ({"seed": 1, "blocks": 3, "operations": 1}, "blocks_max 4: want 1 to 3"),
        ({"seed": 1, "blocks": 4, "operations": 0}, "operations 0"),
        ({"seed": 1, "blocks": 4, "operations": 1, "depth": 257}, "depth 257"),
        ({"seed": 1, "blocks": 4, "operations": 1, "mix": {"read": 99}}, "percentages"),
        ({"seed": 1, "blocks": 4, "operations": 1, "durable": 101}, "durable 101"),
    ],
)
def test_a_plan_that_makes_no_sense_is_refused(args: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        Plan.from_args(args)


def test_a_disk_that_is_too_small_is_refused_before_anything_is_asked_of_it(tmp_path: Path) -> None:
    plan = Plan(seed=1, blocks=BLOCKS + 1, operations=10)
    with backend() as disk_backend, served(disk_backend, [honest], 1 << 20) as disk:
        with pytest.raises(ValueError, match="too few"):
            load(disk, plan, tmp_path / "history")
        assert disk.statistics()["in_flight"] == 0
