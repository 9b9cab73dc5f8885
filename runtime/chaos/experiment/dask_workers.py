"""Workers on other machines: those of a scheduler of Dask, `dask worker HOST:PORT`.

The scheduler hands a trial to a worker that is free. Where that is lost on the way, it hands it to another one; whoever
asked sees one answer for each trial, however often it was begun.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import sys
from collections.abc import Iterable, Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Final

from runtime.chaos.experiment.journal import Trial
from runtime.chaos.experiment.performing import Task, perform
from runtime.chaos.experiment.workers import WorkersLost
from runtime.exits import CommandError, ExitCode

# Dask is imported where it is needed, and much of it has no types.
Client = Any
Future = Any

CONNECT_S: Final = 10
WORKERS_S: Final = 30  # until the first one is there
_AHEAD: Final = 2  # trials that are handed out, for each thread of a worker


class NoCluster(CommandError):
    """Dask is not installed, or nobody is there. Nothing was started."""

    exit_code = ExitCode.USAGE


class DaskWorkers:
    """Performs trials wherever the scheduler at an address has workers; as many at a time as they have threads."""

    def __init__(self, address: str) -> None:
        """Raises NoCluster: Dask is not installed."""
        try:
            import distributed
        except ImportError:
            raise NoCluster('--workers dask://... needs Dask: pip install "partvisor[cluster]"') from None
        logging.getLogger("distributed").setLevel(logging.CRITICAL)  # what it would say, we say in a line
        self._dask: Any = distributed
        self._address = address

    def perform(self, tasks: Iterable[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
        """What is under way when the iteration is left early ends by itself, within the seconds of its trial.

        Raises:
            NoCluster: nobody listens at the address, no worker came, or one has another version of partvisor.
            WorkersLost: the scheduler is gone.
        """
        with contextlib.ExitStack() as stack:
            client = stack.enter_context(self._connected())
            threads = self._threads(client)
            try:
                yield from self._performed(client, iter(tasks), threads * _AHEAD)
            except (OSError, self._dask.CancelledError):
                raise WorkersLost(f"the scheduler at {self._address} is gone") from None

    def _connected(self) -> Client:
        host, _, port = self._address.rpartition(":")
        try:
            socket.create_connection((host, int(port)), CONNECT_S).close()  # Dask would try again and again
            client: Client = self._dask.Client(
                f"tcp://{self._address}", timeout=CONNECT_S, set_as_default=False
            )
        except (OSError, ValueError):
            raise NoCluster(
                f"no scheduler listens at {self._address}; start one there: dask scheduler"
            ) from None
        return client

    def _threads(self, client: Client) -> int:
        """Of all workers, each of which has our version."""
        try:
            client.wait_for_workers(1, timeout=WORKERS_S)
        except TimeoutError:
            raise NoCluster(
                f"no worker came within {WORKERS_S} s; start some: dask worker {self._address}"
            ) from None
        ours = about()
        for worker, theirs in client.run(about, on_error="return").items():
            if theirs != ours:
                raise NoCluster(
                    f"the worker at {worker} has {theirs}, here is {ours}: want the same everywhere"
                )
        return sum(client.nthreads().values()) or 1

    def _performed(
        self, client: Client, tasks: Iterator[Mapping[str, Any]], at_a_time: int
    ) -> Iterator[dict[str, Any]]:
        under_way: dict[Future, Mapping[str, Any]] = {}
        finished = self._dask.as_completed(loop=client.loop)

        def hand_out() -> None:
            if (table := next(tasks, None)) is not None:
                future = client.submit(perform, dict(table), pure=False, retries=0)
                under_way[future] = table
                finished.add(future)

        try:
            for _ in range(at_a_time):
                hand_out()
            while under_way:
                future = next(finished)
                table = under_way.pop(future)
                hand_out()
                yield _trial_of(future, table)
        finally:
            client.cancel(list(under_way))


def about() -> str:
    """What a worker has to have in common with us."""
    try:
        return f"partvisor {version('partvisor')}, Python {sys.version_info.major}.{sys.version_info.minor}"
    except PackageNotFoundError:
        return f"no partvisor (process {os.getpid()})"


def _trial_of(future: Future, table: Mapping[str, Any]) -> dict[str, Any]:
    """Its result. One that could not be performed anywhere shows nothing, and the campaign goes on."""
    if future.status == "finished":
        done: dict[str, Any] = future.result()
        return done
    task = Task.from_table(table)
    why = f"its workers could not perform it: {future.exception()}".splitlines()[0]
    if future.status == "cancelled":
        raise OSError("it forgot a trial")
    trial = Trial(
        task.number, task.seed, task.architecture, task.schedule, (), (), (), (), (), 0.0, why[:400]
    )
    return trial.to_table()
