"""The results of this user: one SQLite file, a row a run, the whole JSON document in it, compressed.

    $XDG_DATA_HOME/partvisor/results.sqlite      0600; ~/.local/share where there is no XDG_DATA_HOME

Several benchmarks may write at once: each write is one short transaction, and waits for the others. A full store makes
room for a new run: the oldest one that is not pinned goes, and whoever saves is told which. Nothing else is ever thrown
away but by `delete`.
"""

from __future__ import annotations

import contextlib
import os
import re
import sqlite3
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Final

from runtime.exits import ExitCode
from runtime.measure.results import DOCUMENT_BYTES_MAX, ResultError, Run, Status, decode_run, encode_run

STORE_VARIABLE: Final = "PARTVISOR_RESULTS"  # overrides the choice of file
RUNS_MAX: Final = 1000  # then the oldest that is not pinned makes room
BUSY_S: Final = 20  # how long a writer waits for another
NAMES_SHOWN_MAX: Final = 5
APPLICATION_ID: Final = 0x70767273  # "pvrs", in SQLite's header: a file of somebody else lacks it

# Each brings the file from the version that is its index to the next one. Never changed, only added to.
MIGRATIONS: Final[Sequence[str]] = (
    """
    CREATE TABLE runs (
        id TEXT PRIMARY KEY,
        bench TEXT NOT NULL,
        label TEXT NOT NULL,
        started_unix_ns INTEGER NOT NULL,
        revision TEXT NOT NULL,
        machine TEXT NOT NULL,
        rows_ok INTEGER NOT NULL,
        rows_all INTEGER NOT NULL,
        document BLOB NOT NULL
    );
    CREATE INDEX runs_by_time ON runs (started_unix_ns, id);
    """,
    "ALTER TABLE runs ADD COLUMN pinned INTEGER NOT NULL DEFAULT 0",
)

_LATEST: Final = re.compile(r"latest(?:~([0-9]{1,6}))?")
_PREFIX: Final = re.compile(r"[0-9a-f]{1,12}")


class StoreError(ResultError):
    """The file cannot be used; it is as it was."""


class RunNotFound(ResultError):
    """No run, or no single one, of that name."""

    exit_code: ClassVar[ExitCode] = ExitCode.NOT_FOUND


@dataclass(frozen=True, slots=True)
class StoredRun:
    """A line of the list."""

    id: str
    bench: str
    label: str
    started_unix_ns: int
    revision: str
    machine: str
    rows_ok: int
    rows_all: int
    document_bytes: int  # compressed
    pinned: bool


def default_path() -> Path:
    """$PARTVISOR_RESULTS, or the file in the user's data directory."""
    if chosen := os.environ.get(STORE_VARIABLE):
        return Path(chosen)
    base = os.environ.get("XDG_DATA_HOME", "")
    # The XDG specification: a relative path is invalid and ignored.
    folder = Path(base) if base.startswith("/") else Path.home() / ".local" / "share"
    return folder / "partvisor" / "results.sqlite"


class ResultStore:
    """One open file. Use `opened`; it may be shared with other processes, not with other threads."""

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        self._path = path
        self._connection = connection

    def save(self, run: Run) -> list[StoredRun]:
        """Keep a run. Returns those that made room for it.

        Raises:
            StoreError: the store is full of pinned runs, or the disk is full; nothing was written.
            ResultError: the run breaks a rule of the document.
            ValueError: a run of this id is there.
        """
        document = encode_run(run)
        decode_run(document)  # whatever stands in the store can be read
        ok = sum(row.status is Status.OK for row in run.rows)
        values = {
            "id": run.id,
            "bench": run.bench,
            "label": run.label,
            "started_unix_ns": run.started_unix_ns,
            "revision": run.revision,
            "machine": run.conditions.machine,
            "rows_ok": ok,
            "rows_all": len(run.rows),
            "document": zlib.compress(document, 6),
        }
        with self._transaction():
            gone = self._make_room()
            places = ",".join(f":{name}" for name in values)
            try:
                self._connection.execute(f"INSERT INTO runs ({','.join(values)}) VALUES ({places})", values)
            except sqlite3.IntegrityError as error:
                raise ValueError(f"run {run.id} is there") from error
        return gone

    def _make_room(self) -> list[StoredRun]:
        """For one more. Within a transaction."""
        runs = self.list_runs()
        too_many = len(runs) + 1 - RUNS_MAX
        gone = [run for run in reversed(runs) if not run.pinned][: max(too_many, 0)]
        if len(gone) < too_many:
            raise StoreError(
                f"{self._path} holds {len(runs)} runs, as many as it may, and all are pinned;"
                f" unpin some: partvisor bench pin --off {runs[-1].id}"
            )
        for run in gone:
            self._connection.execute("DELETE FROM runs WHERE id = ?", (run.id,))
        return gone

    def list_runs(self) -> list[StoredRun]:
        """Newest first."""
        with _explained(self._path):
            rows = self._connection.execute(
                "SELECT id, bench, label, started_unix_ns, revision, machine, rows_ok, rows_all, length(document),"
                " pinned FROM runs ORDER BY started_unix_ns DESC, id DESC"
            ).fetchall()
        return [replace(StoredRun(*row), pinned=bool(row[-1])) for row in rows]

    def pin(self, run_ids: Sequence[str], *, pinned: bool = True) -> None:
        """From now on these go only when they are named."""
        with self._transaction():
            for run_id in run_ids:
                self._connection.execute("UPDATE runs SET pinned = ? WHERE id = ?", (pinned, run_id))

    def find(self, name: str) -> str:
        """The id that a name means: an id, the beginning of one, "latest", or "latest~2", the third newest.

        Raises:
            RunNotFound: nothing has that name, or several do.
        """
        ids = [run.id for run in self.list_runs()]
        if found := _LATEST.fullmatch(name):
            back = int(found[1] or 0)
            if back >= len(ids):
                raise RunNotFound(f"there is no run {name}: {len(ids)} are stored; see: partvisor bench list")
            return ids[back]
        fits = [each for each in ids if each.startswith(name)] if _PREFIX.fullmatch(name) else []
        if len(fits) == 1:
            return fits[0]
        if fits:
            shown = ", ".join(fits[:NAMES_SHOWN_MAX]) + (", ..." if len(fits) > NAMES_SHOWN_MAX else "")
            raise RunNotFound(f"{name} may be any of {len(fits)} runs: {shown}; write more of it")
        raise RunNotFound(f"no stored run is called {name!r}; see: partvisor bench list")

    def load(self, name: str) -> Run:
        """Raises: RunNotFound; ResultError: it was written by another version, or damaged."""
        run_id = self.find(name)
        with _explained(self._path):
            row = self._connection.execute("SELECT document FROM runs WHERE id = ?", (run_id,)).fetchone()
        if row is None:
            raise RunNotFound(f"run {run_id} was deleted meanwhile")
        try:
            unpacker = zlib.decompressobj()
            document = unpacker.decompress(row[0], DOCUMENT_BYTES_MAX + 1)
            if not unpacker.eof:
                raise ResultError("it is cut off, or too large")
            return decode_run(document)
        except (zlib.error, ResultError) as error:
            raise ResultError(
                f"run {run_id} is damaged: {error}; remove it: partvisor bench delete {run_id}"
            ) from error

    def delete(self, run_ids: Sequence[str]) -> int:
        """How many there were of them. The file gives the room back."""
        with self._transaction():
            deleted = sum(
                self._connection.execute("DELETE FROM runs WHERE id = ?", (run_id,)).rowcount
                for run_id in run_ids
            )
        if deleted:
            # Somebody reads or writes just now, so the room is given back another time: not worth an error.
            with contextlib.suppress(sqlite3.OperationalError):
                self._connection.execute("VACUUM")
        return deleted

    def prune(self, *, keep: int | None = None, before_unix_ns: int | None = None) -> int:
        """Delete what is not pinned: all but the newest `keep`, or what began before; how many."""
        runs = self.list_runs()
        old = runs[keep:] if keep is not None else []
        if before_unix_ns is not None:
            old += [run for run in runs if run.started_unix_ns < before_unix_ns]
        return self.delete([run.id for run in dict.fromkeys(old) if not run.pinned])

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        """All of it or nothing. IMMEDIATE: we wait for other writers before we read, so that none gets between."""
        with _explained(self._path):
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise


@contextlib.contextmanager
def opened(path: Path | None = None) -> Iterator[ResultStore]:
    """The store, created or brought up to date if need be.

    Raises:
        StoreError: no such folder can be made, or the file is damaged, somebody else's, or of a newer version.
    """
    path = path or default_path()
    with _explained(path):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # What SQLite creates has the mode that the umask leaves; labels and host names are the user's own affair.
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        connection = sqlite3.connect(path, timeout=BUSY_S, isolation_level=None)
    try:
        store = ResultStore(path, connection)
        _bring_up_to_date(store, path, connection)
        yield store
    finally:
        connection.close()


def _bring_up_to_date(store: ResultStore, path: Path, connection: sqlite3.Connection) -> None:
    with _explained(path):
        connection.execute("BEGIN")  # all of what says whose file this is, from one moment
        try:
            version = _version(path, connection)
        finally:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
    if version == len(MIGRATIONS):
        return
    with store._transaction():
        # Again, now that nobody else writes: two may have found an old file at once.
        for migration in MIGRATIONS[_version(path, connection) :]:
            for statement in migration.split(";"):
                connection.execute(statement)
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")


def _version(path: Path, connection: sqlite3.Connection) -> int:
    """Of the schema; 0 for an empty file. Within a transaction."""
    (owner,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if owner != APPLICATION_ID and (owner or version or tables):
        raise StoreError(f"{path} is a database of another program; name another file: --store FILE")
    if version > len(MIGRATIONS):
        raise StoreError(
            f"{path} was written by a newer partvisor (schema {version}, we know {len(MIGRATIONS)}):"
            " update partvisor, or name another file: --store FILE"
        )
    return int(version)


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    """SQLite's errors as one line with what to do."""
    try:
        yield
    except sqlite3.OperationalError as error:
        if "locked" in str(error):
            raise StoreError(f"{path} has been locked by others for {BUSY_S} s; try again later") from error
        raise StoreError(f"{path} cannot be used: {error}; name another file: --store FILE") from error
    except sqlite3.DatabaseError as error:
        raise StoreError(
            f"{path} is no results file, or is damaged ({error}): move it away, or name another: --store FILE"
        ) from error
    except OSError as error:
        raise StoreError(f"{path}: {error.strerror}; name another file: --store FILE") from error


def load_run(name: str, store: Path | None = None) -> Run:
    """A run by its name in the store, or by the path of a JSON file: one with a "/" in it, or ".json" at its end.

    Raises:
        RunNotFound, StoreError, ResultError
    """
    if "/" not in name and not name.endswith(".json"):
        with opened(store) as results:
            return results.load(name)
    try:
        with open(name, "rb") as file:
            data = file.read(DOCUMENT_BYTES_MAX + 1)
    except OSError as error:
        raise RunNotFound(f"{name}: {error.strerror}") from error
    try:
        return decode_run(data)
    except ResultError as error:
        raise ResultError(f"{name}: {error}") from error
