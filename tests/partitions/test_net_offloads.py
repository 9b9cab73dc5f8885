"""Offloads that there are not: said as a guest's driver reads it, and refused whoever asks for one all the same."""

import struct
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from partitions.net import rndis
from partitions.net.offloads import switched
from partitions.net.rndis import Oid, Status
from partitions.net.server_session import ServerSession
from tests.partitions.test_net_session import ADAPTER, honestly, run

LENGTHS = (20, 22, 24, 26, 28)  # of what is to be switched, by NDIS version
# As Linux says it, for an adapter that can nothing: the IPv4 header's checksum off, and coalescing.
LINUX = struct.pack("<BBH5B6BB I 6B 2x", 0x80, 3, 28, 1, 0, 0, 0, 0, *bytes(6), 0, 0, 0, 0, 1, 1, 0, 0)


def ready_session() -> ServerSession:
    session = ServerSession(ADAPTER)
    run(session, 1500, honestly)
    return session


def test_what_the_adapter_can_is_nothing_in_an_object_that_linux_takes() -> None:
    """Type, revision and size as rndis_query_hwcaps checks them; every ability is zero; offsets as everywhere."""
    session = ready_session()
    answer = session.control(rndis.Query(7, Oid.TCP_OFFLOAD_HARDWARE_CAPABILITIES))
    assert isinstance(answer, rndis.QueryComplete)
    kind, revision, size = struct.unpack_from("<BBH", answer.info)
    assert (answer.status, kind, revision, size) == (Status.SUCCESS, 0xA7, 1, 112)
    assert len(answer.info) == size
    assert not any(answer.info[4:])
    wire = answer.encode()
    length, offset = struct.unpack_from("<II", wire, 16)
    assert (length, offset, wire[8 + offset :]) == (112, 16, answer.info)


def test_what_is_off_may_be_switched_off() -> None:
    session = ready_session()
    before = replace(session.adapter), session.phase, session.packet_filter
    answer = session.control(rndis.Set(8, Oid.TCP_OFFLOAD_PARAMETERS, LINUX))
    assert answer == rndis.SetComplete(8, Status.SUCCESS)
    assert (session.adapter, session.phase, session.packet_filter) == before


@given(st.sampled_from(LENGTHS), st.data())
def test_whatever_is_to_be_switched_on_is_refused(length: int, data: st.DataObject) -> None:
    """One switch on, wherever it stands, all others off or as they are."""
    places = [*range(4, 15), *range(20, min(length, 25))]
    wanted = bytearray(struct.pack("<BBH", 0x80, 1, length) + bytes(length - 4))
    for at in places:
        wanted[at] = data.draw(st.sampled_from([0, 2 if at == 24 else 1]))
    assert switched(bytes(wanted)) is Status.SUCCESS
    at = data.draw(st.sampled_from(places))
    wanted[at] = 1 if at == 24 else data.draw(st.integers(2, 255))
    assert switched(bytes(wanted)) is Status.NOT_SUPPORTED


@given(st.binary(max_size=40))
def test_any_bytes_are_answered_by_a_status_of_the_wire(info: bytes) -> None:
    assert switched(info) in {
        Status.SUCCESS,
        Status.NOT_SUPPORTED,
        Status.INVALID_LENGTH,
        Status.INVALID_DATA,
    }


@pytest.mark.parametrize(
    ("info", "status"),
    [
        (b"", Status.INVALID_LENGTH),
        (LINUX[:19], Status.INVALID_LENGTH),
        (LINUX[:24], Status.INVALID_LENGTH),  # it says that it is longer
        (b"\xa7" + LINUX[1:], Status.INVALID_DATA),
        (b"\x80\0" + LINUX[2:], Status.INVALID_DATA),
    ],
)
def test_what_is_no_wish_is_refused(info: bytes, status: Status) -> None:
    answer = ready_session().control(rndis.Set(9, Oid.TCP_OFFLOAD_PARAMETERS, info))
    assert answer == rndis.SetComplete(9, status)


def test_an_oid_that_nobody_knows_is_not_supported() -> None:
    session = ready_session()
    for oid in (0x0001_0203, 0xFC01_020B, 0xFFFF_FFFF):
        assert session.control(rndis.Query(1, oid)) == rndis.QueryComplete(1, Status.NOT_SUPPORTED)
        assert session.control(rndis.Set(2, oid, b"1234")) == rndis.SetComplete(2, Status.NOT_SUPPORTED)
