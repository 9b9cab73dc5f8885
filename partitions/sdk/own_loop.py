"""A thread with a trio loop, for an asynchronous driver that is called by plain threads: send, receive, reply."""

import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from typing import Any, TypeVar

import trio

ResultT = TypeVar("ResultT")


class OwnLoop:
    """One loop, for as long as the process lives. `run` may be called from any other thread."""

    def __init__(self, name: str) -> None:
        started = threading.Event()
        threading.Thread(target=self._run, args=(started,), name=f"{name}.loop", daemon=True).start()
        started.wait()

    def _run(self, started: threading.Event) -> None:
        async def main() -> None:
            self._token = trio.lowlevel.current_trio_token()
            started.set()
            await trio.sleep_forever()

        trio.run(main)

    def run(self, function: Callable[..., Awaitable[ResultT]], *arguments: Any) -> ResultT:
        """Blocks until it is done, a loop as well: a root closes its disks in one. Raises what it raises."""
        done: Future[ResultT] = Future()

        async def call() -> None:
            try:
                done.set_result(await function(*arguments))
            except BaseException as error:  # the caller's, whatever it is; our loop goes on
                done.set_exception(error)

        self._token.run_sync_soon(trio.lowlevel.spawn_system_task, call)
        return done.result()
