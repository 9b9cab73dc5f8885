"""NBD's handshake without a socket: whatever a client says, it is answered, refused or shown the door."""

import struct

from hypothesis import given, settings
from hypothesis import strategies as st

from partitions.nbd.negotiation import OPTIONS_MAX, Negotiation, Outcome
from partitions.nbd.wire import OPTION_BYTES_MAX, ExportDescription, ExportFlags, Option, Reply

EXPORT = ExportDescription("disk0", "a disk", 1 << 20, 512, 4096, 1 << 20, read_only=False, can_discard=True)
REPLY_MAGIC = 0x3E889045565A9


def option(number: int, data: bytes = b"") -> bytes:
    return struct.pack(">8sII", b"IHAVEOPT", number, len(data)) + data


def ask(number: int, name: bytes, *kinds: int) -> bytes:
    body = struct.pack(">I", len(name)) + name + struct.pack(f">H{len(kinds)}H", len(kinds), *kinds)
    return option(number, body)


def talk(stream: bytes, admit: bool = True) -> tuple[bytes, Outcome, int]:
    """All that is said, how it stands, and how many bytes of the stream were left alone."""
    negotiation, said, outcome = Negotiation(EXPORT, lambda: admit), b"", Outcome.GO_ON
    while outcome is Outcome.GO_ON and len(stream) >= negotiation.wants:
        taken, stream = stream[: negotiation.wants], stream[negotiation.wants :]
        reply, outcome = negotiation.receive(taken)
        said += reply
    return said, outcome, len(stream)


def replies(said: bytes) -> list[tuple[int, int, bytes]]:
    found = []
    while said:
        magic, number, kind, length = struct.unpack_from(">QIII", said)
        assert magic == REPLY_MAGIC
        found.append((number, kind, said[20 : 20 + length]))
        assert len(said) >= 20 + length
        said = said[20 + length :]
    return found


FLAGS = struct.pack(">I", 3)


def test_a_client_gets_the_export_that_it_names_and_is_told_what_it_is() -> None:
    said, outcome, left = talk(FLAGS + ask(Option.GO, b"disk0", 1, 2, 99) + b"transmission")
    assert (outcome, left) == (Outcome.TRANSMIT, len(b"transmission"))
    told = {data[:2]: data[2:] for _, kind, data in replies(said) if kind == Reply.INFO}
    assert struct.unpack(">QH", told[b"\0\0"]) == (1 << 20, EXPORT.flags)
    assert told[b"\0\1"] == b"disk0"
    assert struct.unpack(">III", told[b"\0\3"]) == (512, 4096, 1 << 20)
    assert replies(said)[-1][1] == Reply.ACK


def test_what_the_old_option_answers_is_as_long_as_the_client_agreed_to() -> None:
    for flags, length in ((1, 134), (3, 10)):
        said, outcome, _ = talk(struct.pack(">I", flags) + option(Option.EXPORT_NAME, b""))
        assert (len(said), outcome) == (length, Outcome.TRANSMIT)


def test_options_that_give_nothing_are_answered_and_the_client_may_go_on() -> None:
    stream = (
        FLAGS
        + option(Option.LIST)
        + option(5)  # STARTTLS
        + option(8)  # STRUCTURED_REPLY
        + option(0xDEAD, b"whatever")
        + ask(Option.INFO, b"")
        + ask(Option.GO, b"another")
        + option(Option.GO, b"\0\0\0\xff")  # a name that is not there
        + option(Option.LIST, b"?")
    )
    said, outcome, _ = talk(stream)
    assert outcome is Outcome.GO_ON
    assert [(number, kind) for number, kind, _ in replies(said)] == [
        (Option.LIST, Reply.SERVER),
        (Option.LIST, Reply.ACK),
        (5, Reply.ERR_UNSUPPORTED),
        (8, Reply.ERR_UNSUPPORTED),
        (0xDEAD, Reply.ERR_UNSUPPORTED),
        (Option.INFO, Reply.INFO),
        (Option.INFO, Reply.INFO),
        (Option.INFO, Reply.ACK),
        (Option.GO, Reply.ERR_UNKNOWN),
        (Option.GO, Reply.ERR_INVALID),
        (Option.LIST, Reply.ERR_INVALID),
    ]
    assert talk(FLAGS + option(Option.ABORT))[1] is Outcome.END
    assert replies(talk(FLAGS + ask(Option.GO, b""), admit=False)[0])[0][1] == Reply.ERR_POLICY


def test_a_client_that_cannot_be_followed_or_never_ends_is_shown_the_door() -> None:
    for stream in (
        struct.pack(">I", 7),
        FLAGS + b"IHAVEOPX" + bytes(8),
        FLAGS + struct.pack(">8sII", b"IHAVEOPT", 3, OPTION_BYTES_MAX + 1),
        FLAGS + option(Option.EXPORT_NAME, b"another"),
        FLAGS + option(Option.EXPORT_NAME, b"\xff"),
        FLAGS + option(Option.LIST) * (OPTIONS_MAX + 1),
    ):
        assert talk(stream)[1] is Outcome.END


def test_only_what_the_disk_can_do_is_offered() -> None:
    sealed = ExportDescription("d", "", 1 << 20, 512, 4096, 1 << 20, read_only=True, can_discard=True)
    assert ExportFlags.READ_ONLY in sealed.flags
    assert not sealed.flags & (ExportFlags.SEND_TRIM | ExportFlags.SEND_WRITE_ZEROES)
    plain = ExportDescription("d", "", 1 << 20, 512, 4096, 1 << 20, read_only=False, can_discard=False)
    assert ExportFlags.SEND_TRIM not in plain.flags


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.one_of(st.binary(max_size=40), st.builds(option, st.integers(0, 12), st.binary(max_size=40))))
)
def test_no_stream_is_read_past_its_handshake_or_answered_out_of_form(pieces: list[bytes]) -> None:
    said, outcome, _ = talk(FLAGS + b"".join(pieces))
    if outcome is not Outcome.TRANSMIT:
        replies(said)
