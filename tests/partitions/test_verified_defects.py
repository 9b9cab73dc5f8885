"""Planted defects in real storage servers and disks: the verified load with the checker catches each."""

import errno
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from bus.packets import GpaRange
from partitions.guests.verified import Plan
from partitions.storage.backends import BackendError, MemoryBackend
from partitions.storage.target import Action, Outcome, Write
from runtime.chaos.blocks import BLOCK_BYTES
from runtime.chaos.checker import Cut, check
from runtime.chaos.register_conflicts import Kind
from runtime.chaos.verdict import Verdict, summary
from tests.partitions.mortal_storage import (
    Died,
    Host,
    PlantedBackend,
    Server,
    VolatileBackend,
    data_bytes,
    honest,
    image_of,
    load,
    served,
)

BLOCKS = 24
PATIENCE_S = 0.5  # for defects that make the guest wait for ever
EVERY = 150  # requests between two deaths
DEATHS = 12


def plan(seed: int = 1, operations: int = 3000, patience_s: float = 20) -> Plan:
    return Plan(seed=seed, blocks=BLOCKS, depth=16, operations=operations, patience_s=patience_s)


def judge(backend: MemoryBackend, servers: Sequence[Server], path: Path, patience_s: float = 20) -> Verdict:
    """The load over these servers, and what the checker says of it and of the disk afterwards."""
    wanted = plan(patience_s=patience_s)
    with served(backend, servers, data_bytes(wanted)) as disk:
        _, history = load(disk, wanted, path)
    verdict = check([history], bound_s=patience_s, image=image_of(backend, BLOCKS))
    backend.close()
    return verdict


def kinds(verdict: Verdict) -> set[Kind]:
    return {kind for kind, count in verdict.counts.items() if count}


# -- servers: what they do in which order


def dies_having_executed(host: Host) -> None:
    """Right: what was executed and not answered is in the ring still, and is executed again."""
    host.serve(EVERY)
    for _, _, _, extra, payload in host.take():
        host.executor.execute(extra, payload)
    raise Died


def dies_having_taken(host: Host) -> None:
    """Right: nothing of it happened."""
    host.serve(EVERY)
    host.take()
    raise Died


def answers_twice(host: Host) -> None:
    """Right, if clumsy: the client drops the answer to what it no longer waits for."""
    while packets := host.take(1):
        host.answer(packets[0])
        host.channel.send_completion(b"again".ljust(64, b"\0"), packets[0][2])
        host.channel.release()


def releases_first(host: Host) -> None:
    host.serve(EVERY)
    host.take()
    host.channel.release()
    raise Died


def answers_first(host: Host) -> None:
    """Acknowledges what it has not executed, releases it and dies."""
    host.serve(EVERY)
    nowhere = host.twin(Forgetter(BLOCKS, every=1))
    for packet in host.take():
        host.answer(packet, nowhere)
    host.channel.release()
    raise Died


def loses_a_completion(host: Host) -> None:
    host.serve(EVERY)
    _, _, _, extra, payload = host.take(1)[0]
    host.executor.execute(extra, payload)
    host.channel.release()
    host.serve()


def answers_and_dies_before_releasing(host: Host) -> None:
    """Its successor executes again what the guest knows to be done, from pages that hold other data by then."""
    host.serve(EVERY)
    for packet in host.take():
        host.answer(packet)
    host.take()  # the guest has seen the answers, and used the pages again
    raise Died


@pytest.mark.parametrize("server", [honest, dies_having_executed, dies_having_taken, answers_twice])
def test_servers_that_keep_the_order_lose_nothing(tmp_path: Path, server: Server) -> None:
    verdict = judge(MemoryBackend(BLOCKS * BLOCK_BYTES), [server] * DEATHS + [honest], tmp_path / "history")
    assert verdict.passed, summary(verdict)
    assert verdict.completed == 3000


@pytest.mark.parametrize(
    ("servers", "expected"),
    [
        ([releases_first, honest], Kind.HUNG),
        ([loses_a_completion], Kind.HUNG),
        ([answers_first] * DEATHS + [honest], Kind.LOST),
        ([answers_and_dies_before_releasing] * DEATHS + [honest], Kind.MISDIRECTED),
    ],
    ids=["releases first", "loses a completion", "answers first", "replays what was answered"],
)
def test_servers_that_break_the_order_are_caught(
    tmp_path: Path, servers: list[Server], expected: Kind
) -> None:
    patience_s = PATIENCE_S if expected is Kind.HUNG else 20
    backend = PlantedBackend(BLOCKS)
    verdict = judge(backend, servers, tmp_path / "history", patience_s)
    assert expected in kinds(verdict), summary(verdict)
    assert verdict.violations[0].text


# -- disks: what they do to the data


class Forgetter(PlantedBackend):
    """Says that it wrote."""

    def __init__(self, blocks: int, every: int = 25) -> None:
        super().__init__(blocks)
        self.every = every

    def writev(self, views: Sequence[memoryview], offset: int) -> None:
        if not self.due():
            super().writev(views, offset)


class Doubler(PlantedBackend):
    """Writes something again long after it was acknowledged, whatever was written there since."""

    def __init__(self, blocks: int) -> None:
        super().__init__(blocks)
        self._kept: tuple[bytes, int] | None = None

    def writev(self, views: Sequence[memoryview], offset: int) -> None:
        super().writev(views, offset)
        if self._kept is None:
            self._kept = b"".join(views), offset
        elif self.due():
            content, at = self._kept
            super().writev([memoryview(content)], at)
            self._kept = None


class Tearer(PlantedBackend):
    """Stops in the middle of the last block."""

    def writev(self, views: Sequence[memoryview], offset: int) -> None:
        content = memoryview(b"".join(views))
        super().writev([content[: len(content) - 1024] if self.due() else content], offset)


class Misdirector(PlantedBackend):
    def writev(self, views: Sequence[memoryview], offset: int) -> None:
        size = sum(view.nbytes for view in views)
        super().writev(views, (self.size_bytes - size) - offset // 2 if self.due() else offset)


class Inventor(PlantedBackend):
    def readv(self, views: Sequence[memoryview], offset: int) -> None:
        super().readv(views, offset)
        if self.due():
            views[0][:] = b"\xaa" * views[0].nbytes


class Idler(PlantedBackend):
    """Says that it read."""

    def readv(self, views: Sequence[memoryview], offset: int) -> None:
        if not self.due():
            super().readv(views, offset)


class StaleReader(PlantedBackend):
    """Answers from a cache that it forgot to update."""

    def __init__(self, blocks: int) -> None:
        super().__init__(blocks)
        self._cache: dict[int, bytes] = {}

    def readv(self, views: Sequence[memoryview], offset: int) -> None:
        super().readv(views, offset)
        if offset in self._cache and self.due():
            views[0][:BLOCK_BYTES] = self._cache[offset]
        else:
            self._cache.setdefault(offset, bytes(views[0][:BLOCK_BYTES]))


class Keeper(PlantedBackend):
    """Says that it discarded."""

    every = 2

    def discard(self, offset: int, length: int) -> None:
        if not self.due():
            super().discard(offset, length)


class Eraser(PlantedBackend):
    """Discards the block behind as well."""

    every = 2

    def discard(self, offset: int, length: int) -> None:
        more = BLOCK_BYTES if self.due() and offset + length < self.size_bytes else 0
        super().discard(offset, length + more)


class Failer(PlantedBackend):
    """Honest: fails now and then, before or after it did some of what was asked, and says so."""

    every = 40

    def writev(self, views: Sequence[memoryview], offset: int) -> None:
        if self.due():
            if self.struck % 2:
                super().writev(views[:1], offset)
            raise BackendError(errno.EIO, "as told")
        super().writev(views, offset)


@pytest.mark.parametrize(
    ("disk", "expected"),
    [
        (Forgetter, Kind.LOST),
        (Doubler, Kind.LOST),
        (StaleReader, Kind.LOST),
        (Keeper, Kind.LOST),
        (Eraser, Kind.LOST),
        (Tearer, Kind.TORN),
        (Misdirector, Kind.MISDIRECTED),
        (Inventor, Kind.INVENTED),
        (Idler, Kind.INVENTED),
    ],
)
def test_disks_that_harm_data_are_caught(tmp_path: Path, disk: type[PlantedBackend], expected: Kind) -> None:
    backend = disk(BLOCKS)
    verdict = judge(backend, [honest], tmp_path / "history")
    assert backend.struck > 10
    assert expected in kinds(verdict), summary(verdict)


def test_a_disk_that_fails_and_says_so_is_not_accused(tmp_path: Path) -> None:
    backend = Failer(BLOCKS)
    verdict = judge(backend, [honest], tmp_path / "history")
    assert verdict.failed == backend.struck > 10
    assert verdict.passed, summary(verdict)


# -- the power goes


def cut_off(host: Host) -> None:
    """The machine ends in the middle of the load, and with it what is in the ring."""
    host.serve(1500)
    raise Died


def ignores_fua(host: Host) -> None:
    """Leaves durable writes in the disk's cache; flushes are honest."""
    carry_out = host.executor._carry_out

    def forget(action: Action, pages: GpaRange | None) -> Outcome:
        return carry_out(replace(action, durable=False) if isinstance(action, Write) else action, pages)

    host.executor._carry_out = forget  # type: ignore[method-assign]
    cut_off(host)


@pytest.mark.parametrize("server", [cut_off, ignores_fua])
def test_a_server_that_ignores_fua_is_caught_when_the_power_goes(tmp_path: Path, server: Server) -> None:
    """What was told to be on the medium survives the cut, also between flushes."""
    backend = VolatileBackend(BLOCKS, lying=False)
    mix = {"read": 44, "write": 45, "flush": 1, "discard": 10}
    args = {
        "blocks": BLOCKS,
        "depth": 16,
        "operations": 3000,
        "patience_s": 20,
        "durable": 10,
        "mix": mix,
    }
    histories, cuts = [], []
    for seed in (1, 2):
        wanted = Plan.from_args({"seed": seed, **args})
        with served(backend, [server], data_bytes(wanted), wanted.depth) as disk:
            histories.append(load(disk, wanted, tmp_path / f"history{seed}")[1])
        backend.cut_power()
        cuts.append(Cut(time.monotonic_ns(), power=True))
    image = image_of(backend, BLOCKS)
    backend.close()
    verdict = check(histories, cuts=cuts, image=image)
    assert verdict.passed is (server is cut_off), summary(verdict)
    assert kinds(verdict) <= {Kind.NOT_DURABLE}
    assert all("was to survive" in violation.text for violation in verdict.violations)
    assert Kind.LOST in kinds(check(histories, cuts=[Cut(cut.time_ns) for cut in cuts], image=image))


@pytest.mark.parametrize("lying", [False, True])
def test_a_disk_that_lies_about_flushes_is_caught_when_the_power_goes(tmp_path: Path, lying: bool) -> None:
    backend = VolatileBackend(BLOCKS, lying=lying)
    histories, cuts = [], []
    for boot, servers in enumerate([[cut_off], [cut_off], [honest]]):
        wanted = plan(seed=boot + 1)
        depth = wanted.depth if servers == [cut_off] else None
        with served(backend, servers, data_bytes(wanted), depth) as disk:
            _, history = load(disk, wanted, tmp_path / f"history{boot}")
        histories.append(history)
        if servers == [cut_off]:
            backend.cut_power()
            cuts.append(Cut(time.monotonic_ns(), power=True))
    image = image_of(backend, BLOCKS)
    backend.close()
    verdict = check(histories, cuts=cuts, image=image)
    assert verdict.passed is not lying, summary(verdict)
    assert kinds(verdict) <= {Kind.NOT_DURABLE}
    without_the_cut = check(histories, cuts=[Cut(cut.time_ns) for cut in cuts], image=image)
    assert Kind.LOST in kinds(without_the_cut), "a cache that lost nothing would have proved nothing"
