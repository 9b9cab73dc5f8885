"""Who performs the trials of a campaign: processes of this machine, unless somebody else is named."""

import concurrent.futures
import contextlib
import multiprocessing
import os
import queue
import signal
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final, Protocol, TypeAlias

from runtime.chaos.experiment.performing import perform
from runtime.chaos.interruption import heeding, interrupts_kept
from runtime.exits import CommandError
from runtime.machine.lifeline import die_with_parent

Future: TypeAlias = concurrent.futures.Future[dict[str, Any]]

JOBS_MAX: Final = 64
_AHEAD: Final = 2  # tasks that are handed out, for each worker


class WorkersLost(CommandError):
    """Nobody is left who could perform the rest. What was performed is in the journal."""


class Workers(Protocol):
    """Performs tasks in any order, several at a time."""

    def perform(self, tasks: Iterable[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
        """The tables of trials, as they end, one for each task. Leaving the iteration early ends what is under way.

        Raises CommandError: nobody performs anything, or nobody is left who would.
        """


class LocalWorkers:
    """Processes of this machine. Each waits for a machine of its own most of the time."""

    def __init__(self, jobs: int) -> None:
        if not 1 <= jobs <= JOBS_MAX:
            raise ValueError(f"{jobs} jobs: want 1 to {JOBS_MAX}")
        self._jobs = jobs

    def perform(self, tasks: Iterable[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
        if self._jobs == 1:
            yield from map(perform, tasks)
            return
        with interrupts_kept():  # futures and their pool take locks
            yield from self._perform_together(tasks)

    def _perform_together(self, tasks: Iterable[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
        pool = concurrent.futures.ProcessPoolExecutor(
            self._jobs, multiprocessing.get_context("spawn"), _obey_the_campaign, (os.getpid(),)
        )
        ended: queue.SimpleQueue[Future] = queue.SimpleQueue()  # in C: Ctrl-C leaves no lock of it taken
        under_way = 0
        try:
            for task in tasks:
                with _interrupts_blocked():  # a worker starts in there, and inherits it
                    pool.submit(perform, task).add_done_callback(ended.put)
                under_way += 1
                if under_way >= self._jobs * _AHEAD:
                    yield heeding(ended.get).result()
                    under_way -= 1
            for _ in range(under_way):
                yield heeding(ended.get).result()
        except BaseException as error:
            for process in list((pool._processes or {}).values()):
                process.terminate()
            if isinstance(error, concurrent.futures.process.BrokenProcessPool):
                raise WorkersLost("a worker was killed; what was done until then is in the journal") from None
            raise
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _obey_the_campaign(pid: int) -> None:
    """A worker ends with its campaign, however that ends.

    A Ctrl-C reaches all processes of a terminal. The campaign alone heeds it, and tells its workers: by SIGTERM, of
    which they die where they stand. Whatever machine is under way goes with its worker, and janitors take the folders.
    (An exception from a signal handler could be lost: a destructor swallows it.)
    """
    die_with_parent(pid)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])


@contextlib.contextmanager
def _interrupts_blocked() -> Iterator[None]:
    """Of this thread, and of a process that it starts, whose interpreter they would meet in the middle of its start."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
