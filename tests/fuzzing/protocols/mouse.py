"""The synthetic mouse: what a guest says while a viewer moves it; descriptors and reports of a host."""

from contextlib import suppress
from copy import deepcopy

from partitions.display.conversation import DisplayClosedError
from partitions.display.display_error import DisplayError
from partitions.display.mouse import Mouse, to_pixel
from partitions.display.mouse_session import MouseSession
from partitions.display.mouse_wire import (
    POSITION_MAX,
    REPORT_DESCRIPTOR_BYTES_MAX,
    VERSION,
    Buttons,
    DeviceInfo,
    DeviceInfoAck,
    MouseReport,
    MouseRequest,
    MouseResponse,
    decode_for_guest,
    to_absolute,
)
from tests.fuzzing.pieces import cut, join
from tests.fuzzing.scripted_channel import INBAND_MARK, ScriptedChannel
from tests.fuzzing.targets import Side, target

_SAYS, _MOVES, _LETS_GO = range(3)  # what a piece is, by its first byte
_WIDTH, _HEIGHT = 320, 200


def _guest_seeds() -> list[bytes]:
    asked = bytes([_SAYS]) + MouseRequest(VERSION).encode()
    acknowledged = bytes([_SAYS]) + DeviceInfoAck().encode()
    moves = [bytes([_MOVES, buttons, 10 * buttons, 5, buttons]) for buttons in (0, 1, 1, 5)]
    return [join([asked, acknowledged, *moves, bytes([_LETS_GO]), asked]), join([*moves, asked])]


@target("mouse", Side.HOST, _guest_seeds)
def host(data: bytes) -> None:
    """A refused message changes nothing; nobody is sent a report who has not said that he knows what one means."""
    session = MouseSession()
    for piece in cut(data):
        if not piece:
            continue
        before, told = deepcopy(session), []
        match piece[0] % 3:
            case 0:
                try:
                    told = session.receive(piece[1:])
                except DisplayError:
                    assert session == before, "a refused message changed something"
                    continue
            case 1 if len(piece) > 4:
                buttons, x, y, wheel = piece[1:5]
                at = to_absolute(x * 257, _WIDTH), to_absolute(y * 257, _HEIGHT)
                told = session.move(Buttons(buttons & 7), *at, wheel % 3 - 1)
            case 2:
                told = session.let_go()
                assert not session.acknowledged or not session.buttons
        for payload in told:
            message = decode_for_guest(payload)
            if isinstance(message, MouseReport):
                assert session.agreed
                assert session.acknowledged
                assert (message.buttons, message.x, message.y) == (session.buttons, session.x, session.y)
        assert session.agreed or not session.acknowledged
        assert MouseSession.from_record(session.to_record()) == session


def _host_seeds() -> list[bytes]:
    said = [
        MouseResponse(VERSION, True).encode(),
        DeviceInfo().encode(),
        MouseReport(Buttons.LEFT, 0, POSITION_MAX).encode(),
        MouseReport(Buttons(0), 100, 100, -1).encode(),
    ]
    return [join([INBAND_MARK + one for one in said])]


@target("mouse", Side.GUEST, _host_seeds)
def guest(data: bytes) -> None:
    script, channel = ScriptedChannel.of(list(cut(data)))
    with suppress(DisplayClosedError):
        mouse = Mouse(channel)
        assert 0 < len(mouse.info.report_descriptor) <= REPORT_DESCRIPTOR_BYTES_MAX
        with suppress(DisplayClosedError):
            while (report := mouse.read()) is not None:
                assert 0 <= to_pixel(report.x, _WIDTH) < _WIDTH
                assert 0 <= to_pixel(report.y, _HEIGHT) < _HEIGHT
        assert 2 + mouse.reports + mouse.malformed <= script.given
