"""The ABI's numbers are the TLFS's, and its tables are complete."""

import pytest

from runtime.abi import (
    ALL_PRIVILEGES,
    DEFAULT_PRIVILEGES,
    FILES_PER_PROGRAM_MAX,
    GUEST_PRIVILEGES,
    SLOTS_PER_CALL_MAX,
    VPS_PER_PARTITION_MAX,
    ExitStatus,
    HvStatus,
    HypercallCode,
    HypercallError,
    Privilege,
    RegisterName,
    sint_register,
)
from runtime.codec import DESCRIPTORS_PER_PACKET_MAX
from runtime.hypercalls.arguments import ARGUMENTS, Kind


@pytest.mark.parametrize(
    ("number", "value"),
    [
        (HypercallCode.CREATE_PARTITION, 0x40),
        (HypercallCode.DEPOSIT_MEMORY, 0x48),
        (HypercallCode.MAP_GPA_PAGES, 0x4B),
        (HypercallCode.CREATE_VP, 0x4E),
        (HypercallCode.POST_MESSAGE, 0x5C),
        (HypercallCode.SIGNAL_EVENT, 0x5D),
        (HypercallCode.CREATE_PORT, 0x95),
        (HypercallCode.CONNECT_PORT, 0x96),
        (HypercallCode.START_VIRTUAL_PROCESSOR, 0x99),
        (HvStatus.INVALID_PARAMETER, 5),
        (HvStatus.ACCESS_DENIED, 6),
        (HvStatus.INSUFFICIENT_MEMORY, 0xB),
        (HvStatus.INVALID_PORT_ID, 0x11),
        (HvStatus.INVALID_CONNECTION_ID, 0x12),
        (HvStatus.INSUFFICIENT_BUFFERS, 0x13),
        (HvStatus.INVALID_SYNIC_STATE, 0x18),
        (RegisterName.SCONTROL, 0xA0010),
        (RegisterName.SIEFP, 0xA0012),
        (RegisterName.SIMP, 0xA0013),
        (RegisterName.EOM, 0xA0014),
        (sint_register(2), 0xA0002),
    ],
)
def test_numbers_are_those_of_the_specification(number: int, value: int) -> None:
    assert number == value


def test_the_privilege_mask_of_a_vmbus_guest() -> None:
    """TLFS 2.0 defaults, and what a guest of VMBus needs on top: bits 1, 2, 5, 6, 36, 37."""
    assert DEFAULT_PRIVILEGES == 0x5FF
    for bit in (1, 2, 5, 6, 36, 37):
        assert GUEST_PRIVILEGES & 1 << bit
    assert not GUEST_PRIVILEGES & (Privilege.CREATE_PARTITIONS | Privilege.CPU_MANAGEMENT)
    assert ALL_PRIVILEGES.bit_count() == len(Privilege)


def test_extended_calls_keep_out_of_the_specifications_range() -> None:
    ours = {code for code in HypercallCode if code >= 0x8F00}
    assert {code.name for code in ours} == {
        "GET_BIRTH",
        "CLAIM_DOORBELL",
        "WATCH_CHILDREN",
        "CLAIM_GPA_PAGES",
        "HEARTBEAT",
        "ACCESS_PORT",
        "ACCESS_MEMORY",
        "CLAIM_OVERLAY_PAGE",
        "GET_PORT_COUNTS",
        "CLAIM_ENDPOINT",
        "LOAD_DRIVER",
    }


def test_argument_names_are_unique_in_a_call_and_only_integers_have_defaults() -> None:
    for code, declared in ARGUMENTS.items():
        assert len({entry.name for entry in declared}) == len(declared), code
        for entry in declared:
            assert entry.default is None or entry.kind is Kind.UINT
            assert not (entry.optional and entry.default is not None)


def test_the_largest_replies_fit_into_a_packet() -> None:
    assert 3 * VPS_PER_PARTITION_MAX + FILES_PER_PROGRAM_MAX <= DESCRIPTORS_PER_PACKET_MAX
    assert SLOTS_PER_CALL_MAX <= DESCRIPTORS_PER_PACKET_MAX


def test_an_error_names_its_call_and_status() -> None:
    error = HypercallError(HypercallCode.POST_MESSAGE, HvStatus.INSUFFICIENT_BUFFERS)
    assert str(error) == "POST_MESSAGE (0x5c): INSUFFICIENT_BUFFERS (0x13)"
    assert (str(ExitStatus(3, None)), str(ExitStatus(None, 11))) == ("exit code 3", "signal 11")
