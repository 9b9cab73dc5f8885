"""The results' file: names, several writers, old and foreign and broken files."""

import multiprocessing
import random
import sqlite3
import threading
import zlib
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import msgspec
import pytest

from runtime.measure import result_store
from runtime.measure.result_store import (
    MIGRATIONS,
    RunNotFound,
    StoreError,
    default_path,
    load_run,
    opened,
)
from runtime.measure.results import ResultError, Run, encode_run, new_id
from tests.runtime.result_making import missing, rounds, row, run

WRITERS = 4
RUNS_EACH = 6


def a_run(number: int = 1, run_id: str | None = None) -> Run:
    made = run(row(rounds=rounds(random.Random(number), 500, 2, values=20)), missing("futex"), number=number)
    return made if run_id is None else msgspec.structs.replace(made, id=run_id)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data" / "results.sqlite"


def test_what_is_kept_comes_back_after_reopening(path: Path) -> None:
    kept = [a_run(number) for number in range(3)]
    for each in kept:
        with opened(path) as store:
            store.save(each)
    assert path.stat().st_mode & 0o777 == 0o600
    with opened(path) as store:
        assert [each.id for each in store.list_runs()] == [each.id for each in reversed(kept)]
        assert [store.load(each.id) for each in kept] == kept
        assert (store.list_runs()[0].rows_ok, store.list_runs()[0].rows_all) == (1, 2)
        with pytest.raises(ValueError, match="is there"):
            store.save(kept[0])
        assert len(store.list_runs()) == 3


def test_names_mean_one_run_or_are_refused(path: Path, tmp_path: Path) -> None:
    ids = ["aaaa00000001", "aaab00000002", "bbbb00000003"]
    with opened(path) as store:
        for number, run_id in enumerate(ids):
            store.save(a_run(number, run_id))
        assert store.find("latest") == store.find("latest~0") == store.find("b") == ids[2]
        assert store.find("latest~2") == store.find("aaaa") == store.find(ids[0]) == ids[0]
        for name in ("latest~3", "c", "", "aaa", "%", "AAAA", "latest~x", "aaaa00000001f"):
            with pytest.raises(RunNotFound) as caught:
                store.find(name)
            assert "\n" not in str(caught.value)
        with pytest.raises(RunNotFound, match="aaab00000002, aaaa00000001"):
            store.find("aaa")
    document = tmp_path / "one.json"
    document.write_bytes(encode_run(a_run(7)))
    assert load_run(str(document)) == a_run(7)
    assert load_run("latest", path).id == ids[2]
    with pytest.raises(RunNotFound, match="No such file"):
        load_run(str(tmp_path / "no.json"))
    document.write_bytes(b"{}")
    with pytest.raises(ResultError, match=r"one\.json"):
        load_run(str(document))


def write_some(path: Path, seed: int, start: Barrier | None) -> None:
    if start is not None:
        start.wait(60)
    for number in range(RUNS_EACH):
        with opened(path) as store:
            store.save(a_run(seed * 100 + number, new_id()))


def test_several_processes_write_at_once_and_nothing_is_lost(path: Path) -> None:
    """They also race for the creation of the file and its tables."""
    context = multiprocessing.get_context("fork")
    start = context.Barrier(WRITERS)
    writers = [context.Process(target=write_some, args=(path, seed, start)) for seed in range(WRITERS)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
    assert [writer.exitcode for writer in writers] == [0] * WRITERS
    with opened(path) as store:
        assert len(store.list_runs()) == WRITERS * RUNS_EACH
        for each in store.list_runs():
            store.load(each.id)


def test_whose_file_it_is_is_read_from_one_moment(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process creates the tables while we look: half of the old state and half of the new look foreign."""
    other = threading.Thread(target=lambda: write_some(path, 1, None))

    class Slow(sqlite3.Connection):
        def execute(self, statement: str, *rest: object) -> sqlite3.Cursor:
            if statement == "PRAGMA user_version" and not other.ident:
                other.start()
                other.join(0.3)  # done by then, unless our look keeps it waiting
            return super().execute(statement, *rest)  # type: ignore[arg-type]

    connect = sqlite3.connect

    def slow_for_us(where: Path, **options: Any) -> sqlite3.Connection:
        kind = sqlite3.Connection if threading.current_thread() is other else Slow
        return connect(where, factory=kind, **options)

    monkeypatch.setattr(sqlite3, "connect", slow_for_us)
    with opened(path) as store:
        store.save(a_run(1))
    other.join(60)
    with opened(path) as store:
        assert len(store.list_runs()) == RUNS_EACH + 1


def test_a_full_store_makes_room_by_the_oldest_that_is_not_pinned(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(result_store, "RUNS_MAX", 3)
    kept = [a_run(number) for number in range(5)]
    with opened(path) as store:
        for each in kept[:3]:
            assert store.save(each) == []
        store.pin([kept[0].id])
        with pytest.raises(ValueError, match="is there"):  # and nothing went for it
            store.save(kept[2])
        assert [gone.id for gone in store.save(kept[3])] == [kept[1].id]
        assert [each.id for each in store.list_runs()] == [kept[number].id for number in (3, 2, 0)]
        assert [each.pinned for each in store.list_runs()] == [False, False, True]
        store.pin([kept[2].id, kept[3].id])
        with pytest.raises(StoreError, match=f"bench pin --off {kept[0].id}"):
            store.save(kept[4])
        assert len(store.list_runs()) == 3
        store.pin([kept[3].id], pinned=False)
        assert [gone.id for gone in store.save(kept[4])] == [kept[3].id]


def test_what_is_pinned_outlives_pruning(path: Path) -> None:
    kept = [a_run(number) for number in range(6)]  # each younger than the one before
    with opened(path) as store:
        for each in kept:
            store.save(each)
        store.pin([kept[0].id])
        assert store.prune(keep=4) == 1
        assert store.prune(before_unix_ns=kept[3].started_unix_ns) == 1
        assert [each.id for each in store.list_runs()] == [kept[number].id for number in (5, 4, 3, 0)]
        assert store.delete([kept[0].id]) == 1  # by name it goes


def test_deleting_gives_the_room_back(path: Path) -> None:
    with opened(path) as store:
        for number in range(20):
            store.save(a_run(number))
        before = path.stat().st_size
        assert store.delete([a_run(number).id for number in range(20)] + ["ffffffffffff"]) == 20
    assert path.stat().st_size < before


def test_an_older_file_is_brought_up_to_date_with_all_its_runs(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a migration that does not exist yet; and the one before it then refuses the file."""
    with opened(path) as store:
        store.save(a_run(1))
    later = (*MIGRATIONS, "ALTER TABLE runs ADD COLUMN colour TEXT NOT NULL DEFAULT 'red'")
    with monkeypatch.context() as patch:
        patch.setattr(result_store, "MIGRATIONS", later)
        with opened(path) as store:
            assert store.load("latest") == a_run(1)
    assert sqlite3.connect(path).execute("SELECT colour FROM runs").fetchall() == [("red",)]
    before = path.read_bytes()
    with pytest.raises(StoreError, match="newer partvisor"), opened(path):
        pass
    assert path.read_bytes() == before


def test_a_migration_that_fails_changes_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(path) as store:
        store.save(a_run(1))
    broken = (*MIGRATIONS, "CREATE TABLE more (x); ALTER TABLE nothing ADD COLUMN x")
    with monkeypatch.context() as patch:
        patch.setattr(result_store, "MIGRATIONS", broken)
        with pytest.raises(StoreError), opened(path):
            pass
    with opened(path) as store:
        assert store.load("latest") == a_run(1)


def foreign(path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE theirs (x)")
    connection.commit()
    connection.close()


def noise(path: Path) -> None:
    path.write_bytes(random.Random(1).randbytes(10_000))


def torn(path: Path) -> None:
    with opened(path) as store:
        for number in range(30):
            store.save(a_run(number))
    data = bytearray(path.read_bytes())
    data[4096:] = bytes(len(data) - 4096)
    path.write_bytes(data)


def folder(path: Path) -> None:
    path.mkdir()


@pytest.mark.parametrize("make", [foreign, noise, torn, folder])
def test_a_file_that_is_none_of_ours_is_an_error_of_one_line_and_stays(path: Path, make: object) -> None:
    path.parent.mkdir()
    assert callable(make)
    make(path)
    before = None if path.is_dir() else path.read_bytes()
    with pytest.raises(StoreError) as caught:
        load_run("latest", path)
    assert str(path) in str(caught.value)
    assert "--store" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert before is None or path.read_bytes() == before


@pytest.mark.parametrize(
    "document", [b"", b"junk", zlib.compress(b"{}"), zlib.compress(encode_run(a_run()))[:-5]]
)
def test_a_damaged_run_hurts_no_other(path: Path, document: bytes) -> None:
    with opened(path) as store:
        store.save(a_run(1))
        store.save(a_run(2))
    connection = sqlite3.connect(path)
    connection.execute("UPDATE runs SET document = ? WHERE id = ?", (document, a_run(2).id))
    connection.commit()
    connection.close()
    with opened(path) as store:
        with pytest.raises(ResultError, match=f"bench delete {a_run(2).id}"):
            store.load("latest")
        assert store.load("latest~1") == a_run(1)
        assert store.delete([a_run(2).id]) == 1


def test_the_file_stands_in_the_users_data_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PARTVISOR_RESULTS", raising=False)
    monkeypatch.setenv("HOME", "/home/someone")
    monkeypatch.setenv("XDG_DATA_HOME", "/data")
    assert default_path() == Path("/data/partvisor/results.sqlite")
    for invalid in ("", "relative"):
        monkeypatch.setenv("XDG_DATA_HOME", invalid)
        assert default_path() == Path("/home/someone/.local/share/partvisor/results.sqlite")
    monkeypatch.setenv("PARTVISOR_RESULTS", "/elsewhere.sqlite")
    assert default_path() == Path("/elsewhere.sqlite")


def test_a_folder_that_cannot_be_made_is_an_error_of_one_line() -> None:
    with pytest.raises(StoreError, match="--store"), opened(Path("/proc/none/results.sqlite")):
        pass
    assert not Path("/proc/none").exists()
