"""What a guest says its workload came to: the events of `partitions.measuring`, checked. A guest may say anything."""

import base64
import binascii
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Self

from bus.native import Histogram
from runtime.exits import CommandError

BEGINS_EVENT: Final = "guest.measuring"
ENDS_EVENT: Final = "guest.measured"
NAME_CHARACTERS_MAX: Final = 60
PACKED_BYTES_MAX: Final = 1 << 18  # of a histogram, unpacked


class ReportRefused(CommandError):
    """A guest's report makes no sense."""


@dataclass(frozen=True, slots=True)
class WorkloadReport:
    """One load of one guest."""

    name: str
    transfer_bytes: int  # 0: requests have no size
    depth: int
    operations: int
    seconds: float
    mismatches: int
    latency: Histogram  # ns a request; may hold fewer than `operations`

    @classmethod
    def from_fields(cls, guest: str, fields: Mapping[str, Any]) -> Self:
        """ReportRefused: says what is wrong, and whose it is."""
        try:
            report = cls(
                name=load_name(fields),
                transfer_bytes=_count(fields, "transfer_bytes"),
                depth=_count(fields, "depth"),
                operations=_count(fields, "operations"),
                seconds=_seconds(fields),
                mismatches=_count(fields, "mismatches"),
                latency=_histogram(fields.get("latency")),
            )
        except ValueError as error:
            raise ReportRefused(
                f"{guest} reported a load that makes no sense: {error}; report with partition.measuring(...)"
            ) from error
        if report.operations == 0 or report.latency.count == 0:
            raise ReportRefused(
                f"{guest} measured no request in {report.name!r}: make the load longer, and record latencies"
            )
        return report


def load_name(fields: Mapping[str, Any]) -> str:
    """ValueError: it is none."""
    name = fields.get("name")
    if not isinstance(name, str) or not 0 < len(name) <= NAME_CHARACTERS_MAX or not name.isprintable():
        raise ValueError(f"a name of 1 to {NAME_CHARACTERS_MAX} printable characters is wanted")
    return name


def _count(fields: Mapping[str, Any], key: str) -> int:
    value = fields.get(key)
    if type(value) is not int or not 0 <= value < 1 << 62:
        raise ValueError(f"{key} is no count")
    return value


def _seconds(fields: Mapping[str, Any]) -> float:
    value = fields.get("seconds")
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < 1e6:
        raise ValueError("seconds is no duration")
    return float(value)


def _histogram(value: object) -> Histogram:
    if not isinstance(value, str):
        raise ValueError("latency is no packed histogram")
    try:
        unpacker = zlib.decompressobj()
        packed = unpacker.decompress(base64.b85decode(value), PACKED_BYTES_MAX)
    except (zlib.error, binascii.Error) as error:
        raise ValueError(f"latency is no packed histogram ({error})") from error
    if not unpacker.eof:
        raise ValueError("latency is no packed histogram")
    return Histogram.unpack(packed)
