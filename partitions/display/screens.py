"""The screens of a stack's partitions, and a thread with a trio loop of its own for those who look at them.

The platform listens, accepts, and hands each connection over (runtime.machine.screen_doors); so an address stays what
it was when another root takes over, and viewers only have to connect again. The thread is started with the first of
them: encoding pixels is work, and the stack's own task has heartbeats to send.
"""

import socket
import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

import trio

from partitions.display.devices import KeyboardDevice, MouseDevice, VideoDevice
from partitions.display.rfb_viewer import Screen, Viewer
from partitions.display.rfb_wire import RfbError

VIEWERS_MAX: Final = 8  # of one machine's screens, at once; a ninth is told so
CONNECTIONS_MAX: Final = 32  # also those that are being told; beyond that they are closed


def screens_of(tables: Iterable[Mapping[str, Any]], devices: Mapping[str, object]) -> dict[str, Screen]:
    """By partition. `tables`: the [[partition]]s; `devices`: the root's, by name."""
    found = {}
    for table in tables:
        own = [devices.get(one["name"]) for one in table.get("device", ())]
        for video in (one for one in own if isinstance(one, VideoDevice)):
            keyboard = next((one for one in own if isinstance(one, KeyboardDevice)), None)
            mouse = next((one for one in own if isinstance(one, MouseDevice)), None)
            found[table["name"]] = Screen(table["name"], video, keyboard, mouse)
    return found


class Screens:
    """Of one process."""

    def __init__(self, screens: Mapping[str, Screen], log: Callable[..., None]) -> None:
        self._screens, self._log = screens, log
        self._token: trio.lowlevel.TrioToken | None = None
        self._nursery: trio.Nursery | None = None
        self._viewers = 0

    def admit(self, name: str, fd: int) -> None:
        """A viewer of that partition's screen; its connection is ours from here on. For one thread."""
        sock = socket.socket(fileno=fd)
        if (screen := self._screens.get(name)) is None:
            sock.close()
            return
        if self._token is None:
            self._start()
        assert self._token is not None
        self._token.run_sync_soon(self._begin, sock, screen)

    def _start(self) -> None:
        started = threading.Event()

        async def main() -> None:
            self._token = trio.lowlevel.current_trio_token()
            async with trio.open_nursery() as self._nursery:
                started.set()
                await trio.sleep_forever()

        threading.Thread(target=trio.run, args=(main,), name="screens", daemon=True).start()
        started.wait()

    def _begin(self, sock: socket.socket, screen: Screen) -> None:
        """In that loop."""
        if self._viewers >= CONNECTIONS_MAX:
            sock.close()
            return
        assert self._nursery is not None
        self._viewers += 1
        refused = f"{VIEWERS_MAX} viewers are there already" if self._viewers > VIEWERS_MAX else None
        self._nursery.start_soon(self._serve, sock, screen, refused)

    async def _serve(self, sock: socket.socket, screen: Screen, refused: str | None) -> None:
        """Whatever it does, nobody else is hurt."""
        stream = trio.SocketStream(trio.socket.from_stdlib_socket(sock))
        viewer = Viewer(stream, screen, refused)
        reason = "left"
        try:
            if refused is None:
                self._log("screen.viewer_came", guest=screen.name)
            async with stream:
                await viewer.run()
        except* (RfbError, OSError) as errors:
            reason = str(_first(errors))[:200]
        except* (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        except* Exception as errors:  # a defect of ours
            first = _first(errors)
            reason = f"{type(first).__name__}: {first}"[:200]
        finally:
            self._viewers -= 1
        if refused is None:
            self._log("screen.viewer_left", guest=screen.name, reason=reason, updates=viewer.updates)


def _first(errors: BaseExceptionGroup[BaseException]) -> BaseException:
    error: BaseException = errors
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
