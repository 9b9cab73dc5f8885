"""CDBs and sense data: what is built is what is parsed, and no bytes make the parser fail untyped."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from partitions.storage.scsi import (
    Command,
    Inquiry,
    ModeSense,
    Opcode,
    ReadBlocks,
    ReadCapacity,
    ReportLuns,
    RequestSense,
    ScsiError,
    SynchronizeCache,
    TestUnitReady,
    Unmap,
    WriteBlocks,
    build_cdb,
    cdb_bytes,
    parse_cdb,
)
from partitions.storage.sense import (
    INVALID_FIELD_IN_CDB,
    INVALID_OPCODE,
    SENSE_BYTES,
    Sense,
    build_sense,
    parse_sense,
)

u8, u16, u32, u64 = (st.integers(0, 2**bits - 1) for bits in (8, 16, 32, 64))

commands: st.SearchStrategy[Command] = st.one_of(
    st.just(TestUnitReady()),
    st.builds(RequestSense, u8, st.booleans()),
    st.builds(Inquiry, u16, st.none() | u8),
    st.builds(ModeSense, st.integers(0, 63), u8, u8, st.integers(0, 3), st.booleans()),
    st.builds(ModeSense, st.integers(0, 63), u16, u8, st.integers(0, 3), st.booleans(), st.just(True)),
    st.just(ReadCapacity()),
    st.builds(ReadCapacity, u32, st.just(True)),
    st.builds(ReadBlocks, u64, u32, st.booleans()),
    st.builds(WriteBlocks, u64, u32, st.booleans()),
    st.builds(SynchronizeCache, u64, u32),
    st.builds(Unmap, u16),
    st.builds(ReportLuns, u32, st.integers(0, 2)),
)


@given(commands)
def test_a_command_survives_building_and_parsing(command: Command) -> None:
    cdb = build_cdb(command)
    assert len(cdb) == cdb_bytes(cdb[0]) <= 16
    assert parse_cdb(cdb) == command
    assert parse_cdb(cdb.ljust(16, b"\xff")) == command, "bytes behind the CDB's own length do not count"


@given(st.binary(max_size=20))
def test_any_bytes_are_a_command_or_a_scsi_error(cdb: bytes) -> None:
    known = not cdb or cdb[0] in set(Opcode)
    refusal: Sense | None = None
    try:
        assert isinstance(parse_cdb(cdb), Command)
    except ScsiError as error:
        refusal = error.sense
    assert refusal in ((None, INVALID_FIELD_IN_CDB) if known else (INVALID_OPCODE,))


@given(commands, st.data())
def test_a_cdb_cut_short_is_an_invalid_field(command: Command, data: st.DataObject) -> None:
    cdb = build_cdb(command)
    with pytest.raises(ScsiError) as caught:
        parse_cdb(cdb[: data.draw(st.integers(1, len(cdb) - 1))])
    assert caught.value.sense == INVALID_FIELD_IN_CDB


@pytest.mark.parametrize(
    ("cdb", "command"),
    [
        ("28 00 00 00 00 10 00 00 08 00", ReadBlocks(16, 8)),
        ("2a 08 ff ff ff ff 00 ff ff 00", WriteBlocks(0xFFFFFFFF, 0xFFFF, force_unit_access=True)),
        ("88 00 00 00 00 01 00 00 00 00 00 01 00 00 00 00", ReadBlocks(1 << 32, 65536)),
        ("08 1f ff ff 00 00", ReadBlocks(0x1FFFFF, 256)),
        ("0a 00 00 02 01 00", WriteBlocks(2, 1)),
        ("12 01 83 00 ff 00", Inquiry(255, 0x83)),
        ("9e 10 00 00 00 00 00 00 00 00 00 00 00 20 00 00", ReadCapacity(32, long=True)),
        ("1a 00 3f 00 c0 00", ModeSense(0x3F, 192)),
        ("35 00 00 00 00 00 00 00 00 00", SynchronizeCache()),
        ("42 00 00 00 00 00 00 00 18 00", Unmap(24)),
        ("a0 00 00 00 00 00 00 00 10 00 00 00", ReportLuns(4096)),
    ],
)
def test_bytes_as_linux_sends_them(cdb: str, command: Command) -> None:
    assert parse_cdb(bytes.fromhex(cdb)) == command


@pytest.mark.parametrize(
    "cdb",
    [
        "28 20 00 00 00 10 00 00 08 00",  # protection information wanted
        "28 00 00 00 00 10 00 00 08 04",  # NACA
        "12 02 00 00 ff 00",  # CMDDT
        "12 00 83 00 ff 00",  # a page without EVPD
        "9e 11 00 00 00 00 00 00 00 00 00 00 00 20 00 00",  # another service action
        "42 01 00 00 00 00 00 00 18 00",  # ANCHOR
        "a0 00 11 00 00 00 00 00 10 00 00 00",  # administrative LUNs
    ],
)
def test_a_feature_that_we_lack_is_refused_rather_than_ignored(cdb: str) -> None:
    with pytest.raises(ScsiError) as caught:
        parse_cdb(bytes.fromhex(cdb))
    assert caught.value.sense == INVALID_FIELD_IN_CDB


@given(st.builds(Sense, st.integers(0, 15), u8, u8, st.none() | u32))
def test_sense_survives_building_and_parsing(sense: Sense) -> None:
    data = build_sense(sense)
    assert len(data) == SENSE_BYTES
    assert parse_sense(data) == sense


@given(st.builds(Sense, st.integers(0, 15), u8, u8), st.integers(0, SENSE_BYTES))
def test_sense_cut_short_keeps_what_is_left(sense: Sense, length: int) -> None:
    parsed = parse_sense(build_sense(sense)[:length])
    if length < 3:
        assert parsed is None
    else:
        assert parsed is not None
        assert parsed.key == sense.key
        assert parsed.asc == (sense.asc if length > 12 else 0)


@given(st.binary(max_size=32))
def test_any_bytes_are_sense_or_none(data: bytes) -> None:
    parsed = parse_sense(data)
    assert parsed is None or 0 <= parsed.key <= 15
