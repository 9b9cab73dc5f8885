"""One client's handshake. Bytes in, bytes out: no socket, no clock.

    FLAGS -> OPTION -> DATA -> OPTION ... -> over, with the export (TRANSMIT) or without it (END)

An option that we do not know, or that is malformed inside, is refused and the client may go on; one after which the
stream cannot be followed ends it.
"""

import enum
from collections.abc import Callable
from typing import Final

from partitions.nbd.wire import (
    CLIENT_FLAGS_BYTES,
    OPTION_HEAD_BYTES,
    ExportDescription,
    HandshakeFlags,
    Info,
    MalformedOption,
    Option,
    Reply,
    build_export_answer,
    build_greeting,
    build_info,
    build_reply,
    build_server,
    parse_client_flags,
    parse_info_request,
    parse_name,
    parse_option_head,
)

OPTIONS_MAX: Final = 64  # of one client; an honest one needs half a dozen


class Outcome(enum.Enum):
    GO_ON = enum.auto()
    TRANSMIT = enum.auto()  # the client has its export
    END = enum.auto()  # close, after sending what there is


class _Part(enum.Enum):
    FLAGS = enum.auto()
    HEAD = enum.auto()
    DATA = enum.auto()


class Negotiation:
    """`wants` says how many bytes to read next, and never more: what follows the handshake is not ours to read."""

    def __init__(self, export: ExportDescription, admit: Callable[[], bool] = lambda: True) -> None:
        """`admit`: asked once, when a client wants to begin: whether there is room for it."""
        self._export, self._admit = export, admit
        self._part = _Part.FLAGS
        self._flags = HandshakeFlags(0)
        self._option = 0
        self._options = 0
        self.wants = CLIENT_FLAGS_BYTES

    @property
    def greeting(self) -> bytes:
        return build_greeting()

    def receive(self, data: bytes) -> tuple[bytes, Outcome]:
        """`wants` bytes; what to send, and how it goes on."""
        assert len(data) == self.wants
        try:
            match self._part:
                case _Part.FLAGS:
                    self._flags = parse_client_flags(data)
                case _Part.HEAD:
                    self._option, self.wants = parse_option_head(data)
                    self._options += 1
                    if self._options > OPTIONS_MAX:
                        return b"", Outcome.END
                    if self.wants:
                        self._part = _Part.DATA
                        return b"", Outcome.GO_ON
                    return self._next(*self._answer(b""))
                case _Part.DATA:
                    return self._next(*self._answer(data))
        except MalformedOption as error:
            if error.fatal:
                return b"", Outcome.END
            if self._option == Option.EXPORT_NAME:  # has no way to be refused
                return b"", Outcome.END
            return self._next(
                build_reply(self._option, Reply.ERR_INVALID, str(error).encode()), Outcome.GO_ON
            )
        return self._next(b"", Outcome.GO_ON)

    def _next(self, reply: bytes, outcome: Outcome) -> tuple[bytes, Outcome]:
        self._part, self.wants = _Part.HEAD, OPTION_HEAD_BYTES
        return reply, outcome

    def _answer(self, data: bytes) -> tuple[bytes, Outcome]:
        option, export = self._option, self._export
        match option:
            case Option.EXPORT_NAME:
                if not self._is_ours(parse_name(data)) or not self._admit():
                    return b"", Outcome.END
                return build_export_answer(export, self._flags), Outcome.TRANSMIT
            case Option.ABORT:
                return build_reply(option, Reply.ACK), Outcome.END
            case Option.LIST:
                if data:
                    raise MalformedOption("LIST has no data", fatal=False)
                listed = build_reply(option, Reply.SERVER, build_server(export.name))
                return listed + build_reply(option, Reply.ACK), Outcome.GO_ON
            case Option.INFO | Option.GO:
                return self._inform(option, *parse_info_request(data))
        return build_reply(option, Reply.ERR_UNSUPPORTED), Outcome.GO_ON

    def _inform(self, option: int, name: str, wanted: frozenset[int]) -> tuple[bytes, Outcome]:
        if not self._is_ours(name):
            text = f"there is {self._export.name!r} alone".encode()
            return build_reply(option, Reply.ERR_UNKNOWN, text), Outcome.GO_ON
        if option == Option.GO and not self._admit():
            return build_reply(option, Reply.ERR_POLICY, b"as many clients as there may be"), Outcome.GO_ON
        kinds = [
            Info.EXPORT,
            *(kind for kind in (Info.NAME, Info.DESCRIPTION) if kind in wanted),
            Info.BLOCK_SIZE,
        ]
        told = b"".join(build_reply(option, Reply.INFO, build_info(self._export, kind)) for kind in kinds)
        outcome = Outcome.TRANSMIT if option == Option.GO else Outcome.GO_ON
        return told + build_reply(option, Reply.ACK), outcome

    def _is_ours(self, name: str) -> bool:
        """The empty name is the default export."""
        return name in ("", self._export.name)
