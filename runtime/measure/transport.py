"""Write your own transport: a class with four methods puts any way to talk on `partvisor bench ladder`.

    class MyTransport(Transport):
        name = "my-pipe"

        def open(self, payload_bytes): ...    # in the parent: make descriptors or memory; both sides inherit them
        def serve(self, answer): ...          # in the server's process: take a request, send answer(request), for ever
        def exchange(self, request): ...      # in the client's process: send the request, return its reply
        def close(self): ...                  # in the parent, at the end

    partvisor bench ladder --transport my_module:MyTransport

The ladder makes one object for each sample, opens it, forks two processes, pins them, measures, kills both, closes it.
docs/tutorial-transport.md leads through an example.
"""

import importlib
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

from runtime.config.model import WaitingKind
from runtime.exits import CommandError

Answer = Callable[[bytes], bytes]

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,63}")
_SPELLING: Final = "MODULE:CLASS, such as my_module:MyTransport"


class NotInstalled(Exception):
    """The transport needs something that this machine lacks. The text says how to get it: "pip install pyzmq"."""


class Impossible(Exception):
    """It cannot carry a payload of this size, or not here. The text says why."""


class TransportError(CommandError):
    """`--transport` names nothing that can be measured."""


class Transport:
    """One way to talk, made for one sample. Derive from it; `exchange` and `serve` are what is measured.

    Requests and replies are bytes of the size that `open` was told. The ladder checks replies: `serve` has to hand each
    request to `answer` and to send back what that returns, and `exchange` has to return just that.
    """

    name: str = ""  # its row in the table; letters, digits, ".", "_", "+", "-"
    group: str = "your own"  # a heading
    waiting: WaitingKind = WaitingKind.BLOCK  # what a side does while it has nothing: for the table alone
    one_process: bool = False  # both sides are threads of one process

    def open(self, payload_bytes: int) -> None:
        """In the parent, before anything is forked. Raises NotInstalled or Impossible: the row says so."""

    def serve(self, answer: Answer) -> None:
        """In the server: for ever, take a request and send answer(request). The process is killed at the end."""
        raise NotImplementedError(f"{type(self).__name__}.serve")

    def connect(self) -> None:
        """In the client, before its first exchange. May wait for the server."""

    def exchange(self, request: bytes) -> bytes:
        """In the client: send a request, wait for its reply, return it."""
        raise NotImplementedError(f"{type(self).__name__}.exchange")

    def close(self) -> None:
        """In the parent, after both sides have ended. Not where `open` raised."""


TransportMaker = Callable[[], Transport]


def load_transport(text: str) -> type[Transport]:
    """The class that `--transport MODULE:CLASS` names; the module may stand in the current folder.

    Raises:
        TransportError: one line, with what to put right.
    """
    module_name, colon, class_name = text.partition(":")
    if not (module_name and colon and class_name):
        raise TransportError(f"--transport {text}: {_SPELLING} is needed")
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.append(here)
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        hint = "put it into this folder, or its folder into PYTHONPATH"
        raise TransportError(f"--transport {text}: there is no module {error.name}: {hint}") from error
    except Exception as error:  # a user's own code ran, so it can be anything
        raise TransportError(
            f"--transport {text}: {module_name} cannot be imported: {type(error).__name__}: {error}"
        ) from error
    found = getattr(module, class_name, None)
    if not isinstance(found, type):
        raise TransportError(f"--transport {text}: {module_name} has no class {class_name}")
    return check_class(found, f"--transport {text}")


def check_class(found: type, what: str) -> type[Transport]:
    """Whether it has what a transport needs. TransportError: it lacks it."""
    if not issubclass(found, Transport):
        raise TransportError(
            f"{what}: {found.__name__} is no transport: derive it from runtime.measure.transport.Transport"
        )
    missing = [name for name in ("serve", "exchange") if getattr(found, name) is getattr(Transport, name)]
    if missing:
        raise TransportError(f"{what}: {found.__name__} lacks the method {' and '.join(missing)}")
    if not _NAME.fullmatch(found.name):
        raise TransportError(
            f'{what}: {found.__name__} needs a name, such as name = "my-pipe" (letters, digits, . _ + -)'
        )
    if not isinstance(found.waiting, WaitingKind):
        raise TransportError(f"{what}: {found.__name__}.waiting: a WaitingKind is needed")
    return found
