"""A thread with a trio loop, for an asynchronous driver that is called by plain threads: send, receive, reply."""

import threading
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import trio

ResultT = TypeVar("ResultT")


class OwnLoop:
    """One loop, for as long as the process lives. `run` may be called from any thread that has none."""

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
        """Blocks until it is done; raises what it raises."""
        return trio.from_thread.run(function, *arguments, trio_token=self._token)
