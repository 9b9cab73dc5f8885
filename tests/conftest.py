"""Options of the whole suite, and what every test may use."""

import gc
import os
import signal
import tempfile
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


@pytest.fixture(scope="session", autouse=True)
def what_the_last_tests_left_is_noticed() -> Iterator[None]:
    """A warning from a destructor fails whichever test it is raised in. After a worker's last one nobody would look."""
    yield
    gc.collect()


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


@pytest.fixture
def runtime_dir() -> Iterator[Path]:
    """Where machines put their sockets. A socket's path has at most 107 bytes: pytest's own folders are too deep."""
    folder = Path(tempfile.mkdtemp(prefix="pv-"))
    yield folder / "run"
    assert list(folder.rglob("*")) == []
    folder.rmdir()
