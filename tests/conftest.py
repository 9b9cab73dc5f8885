"""Options of the whole suite, and what every test may use."""

import gc
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest
from hypothesis import HealthCheck, settings

# On a busy host any example may take long, which says nothing of what it shows.
settings.register_profile("any host", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any host")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--soak", action="store_true", help="run what takes minutes, too")


def pytest_configure() -> None:
    """A shell starts what runs in the background with SIGINT ignored, nohup does so with SIGHUP, and every process that
    a test starts would inherit that: none could be ended by these signals, and tests of just that would wait for ever.
    What is handled here, be it by nothing, is not inherited."""
    for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, lambda *_: None)):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, handler)


# Their tests take longest. Begun last, they would keep one worker busy when the others have nothing left to do.
BEGUN_FIRST: Final = ("test_docs.py", "test_scripts.py", "test_native_checks.py", "test_chaos_workers.py")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.name not in BEGUN_FIRST)  # otherwise as they come
    if not config.getoption("--soak"):
        for item in items:
            if item.get_closest_marker("soak") is not None:
                item.add_marker(pytest.mark.skip(reason="takes minutes; runs with --soak"))


# $1: a folder. Once nobody has the other end of its stdin any more: whoever was told to write below the folder is
# killed, and the folder removed. grep looks for "TMPDIR=$1" at the start of a variable of any process.
_JANITOR: Final = (
    'trap "" HUP INT QUIT TERM; read -r _; tries=0; while [ "$tries" -lt 100 ]; do'
    ' left=$(grep -lsz "^TMPDIR=$1" /proc/[0-9]*/environ); [ -n "$left" ] || break;'
    ' for one in $left; do one=${one#/proc/}; kill -KILL "${one%/environ}" 2>/dev/null; done;'
    ' sleep 0.1; tries=$((tries + 1)); done; rm -rf -- "$1"'
)


@pytest.fixture(scope="session", autouse=True)
def nothing_outlives_the_tests(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """However this process ends, be it by SIGKILL: what its tests have started ends, and their folders go.

    All of them are below one, which a janitor watches over. What pytest itself keeps to be looked at stays where it is.
    """
    tmp_path_factory.getbasetemp()
    folder = tempfile.mkdtemp(prefix="pv-")
    Path(folder).chmod(0o1777)  # as the one around it: some tests run as another user
    janitor = subprocess.Popen(
        ["sh", "-c", _JANITOR, "janitor-of-tests", folder],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd="/",
        start_new_session=True,  # a Ctrl-C is not for it
    )
    with pytest.MonkeyPatch.context() as patch, janitor:
        patch.setenv("TMPDIR", folder)
        patch.setattr(tempfile, "tempdir", folder)
        yield


@pytest.fixture(scope="session", autouse=True)
def what_the_last_tests_left_is_noticed() -> Iterator[None]:
    """A warning from a destructor fails whichever test it is raised in. After a worker's last one nobody would look."""
    yield
    gc.collect()


JANITORS_S: Final = 30.0
DESCRIPTORS_BETWEEN_COLLECTIONS: Final = 200
_descriptors_after_collection = DESCRIPTORS_BETWEEN_COLLECTIONS


@pytest.fixture(autouse=True)
def descriptors_in_cycles_are_let_go() -> Iterator[None]:
    """Channels and rings that nobody closes go with the collector, which counts objects and not descriptors."""
    global _descriptors_after_collection
    yield
    if _descriptors() > _descriptors_after_collection + DESCRIPTORS_BETWEEN_COLLECTIONS:
        gc.collect()
        _descriptors_after_collection = _descriptors()


def _descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208


def what_is_below(folder: Path) -> list[Path]:
    """Somebody may be removing it while we look."""
    try:
        return list(folder.rglob("*"))
    except FileNotFoundError:
        return [folder] if folder.exists() else []


@pytest.fixture
def runtime_dir() -> Iterator[Path]:
    """Where machines put their sockets. A socket's path has at most 107 bytes: pytest's own folders are too deep."""
    folder = Path(tempfile.mkdtemp(prefix="pv-"))
    yield folder / "run"
    deadline = time.monotonic() + JANITORS_S
    while (left := what_is_below(folder)) and time.monotonic() < deadline:
        time.sleep(0.01)  # of a machine that was killed, its janitor takes care, when it gets a processor
    assert left == []
    folder.rmdir()
