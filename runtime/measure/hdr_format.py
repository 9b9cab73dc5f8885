"""HdrHistogram's file formats: .hgrm, a table of percentiles, and .hlog, a log with a whole histogram a line.

Our buckets are those of an HdrHistogram with two significant digits and a smallest unit of 1: exact below 256, then 128
an octave, numbered the same way. So counts are carried over as they are, one for one.

Source: HdrHistogram (Java), AbstractHistogram.encodeIntoByteBuffer and outputPercentileDistribution;
HistogramLogWriter; ZigZagEncoding.
"""

from __future__ import annotations

import base64
import math
import struct
import zlib
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Final

from bus.native import Histogram
from runtime.measure.results import ResultError, Row, Run

COUNT_END: Final = 2**61  # values of a histogram
VALUE_END: Final = 2**62  # ns; smaller values fit their signed numbers with room for a whole bucket
TICKS_PER_HALF_DISTANCE: Final = 5  # lines of a .hgrm each time that the rest above a percentile halves
NS_PER_MS: Final = 1e6

_SIGNIFICANT_DIGITS: Final = 2
_V2_COOKIE: Final = 0x1C849303 | 0x10
_V2_COMPRESSED_COOKIE: Final = 0x1C849304 | 0x10
_HEADER: Final = struct.Struct(">iiiiqqd")  # cookie, payload bytes, offset, digits, lowest, highest, ratio
_COMPRESSED_HEADER: Final = struct.Struct(">ii")

assert _HEADER.size == 40
assert _COMPRESSED_HEADER.size == 8


def hgrm(histogram: Histogram) -> str:
    """The table that HdrHistogram's plotter reads; values in ns. Of at least one value."""
    _check(histogram)
    lines = [f"{'Value':>12} {'Percentile':>14} {'TotalCount':>10} {'1/(1-Percentile)':>14}", ""]
    total, seen, percent = histogram.count, 0, 0.0
    for top, count in histogram.buckets:
        seen += count
        value = min(top, histogram.maximum)
        while 100 * seen / total >= percent and seen < total:
            lines.append(f"{value:12.3f} {percent / 100:2.12f} {seen:10d} {1 / (1 - percent / 100):14.2f}")
            halvings = int(math.log2(100 / (100 - percent))) + 1
            percent += 100 / (TICKS_PER_HALF_DISTANCE * 2**halvings)
    lines.append(f"{histogram.maximum:12.3f} {1:2.12f} {total:10d}")
    mean, deviation = _moments(histogram)
    lines += [
        f"#[Mean    = {mean:12.3f}, StdDeviation   = {deviation:12.3f}]",
        f"#[Max     = {histogram.maximum:12.3f}, Total count    = {total:12d}]",
        "#[Buckets = 56, SubBuckets     = 256]",
    ]
    return "\n".join(lines) + "\n"


def hlog(run: Run, rows: Iterable[Row]) -> str:
    """A line for each counted round, tagged with its row's name, in order of time; the log's unit is ns."""
    start_s = run.started_unix_ns / 1e9
    when = datetime.fromtimestamp(start_s, UTC).strftime("%a %b %d %H:%M:%S UTC %Y")
    lines = [
        f"#[partvisor bench {run.bench}, run {run.id}, revision {run.revision}]",
        "#[Histogram log format version 1.3]",
        f"#[StartTime: {start_s:.3f} (seconds since epoch), {when}]",
        '"StartTimestamp","Interval_Length","Interval_Max","Interval_CompressedHistogram"',
    ]
    rounds = [(one.at_s, row.name, one) for row in rows for one in row.counted]
    for at_s, name, one in sorted(rounds, key=lambda each: each[:2]):
        maximum_ms = one.latency.maximum / NS_PER_MS
        line = f"Tag={name},{at_s:.6f},{one.seconds:.6f},{maximum_ms:.6f},{encoded(one.latency)}"
        lines.append(line)
    return "\n".join(lines) + "\n"


def encoded(histogram: Histogram) -> str:
    """V2, compressed, base64: what stands in a log, and what `HdrHistogram.decode` reads."""
    _check(histogram)
    counts = _counts(histogram)
    highest = max(2 ** max(histogram.maximum.bit_length(), 9), 2)
    plain = _HEADER.pack(_V2_COOKIE, len(counts), 0, _SIGNIFICANT_DIGITS, 1, highest, 1.0) + counts
    packed = zlib.compress(plain)
    return base64.b64encode(_COMPRESSED_HEADER.pack(_V2_COMPRESSED_COOKIE, len(packed)) + packed).decode()


def _check(histogram: Histogram) -> None:
    if not 0 < histogram.count < COUNT_END or histogram.maximum >= VALUE_END:
        raise ResultError("the histogram is empty or has values that HdrHistogram's formats cannot hold")


def _counts(histogram: Histogram) -> bytes:
    """Zigzag LEB128; a negative number is a run of empty buckets."""
    parts: list[bytes] = []
    following = 0
    for top, count in histogram.buckets:
        bucket = _bucket_of(top)
        if bucket > following:
            parts.append(_zigzag(following - bucket))
        parts.append(_zigzag(count))
        following = bucket + 1
    return b"".join(parts)


def _bucket_of(value: int) -> int:
    """As histogram_bucket_of in histogram.h, and as their countsArrayIndex."""
    if value < 128:
        return value
    octave = value.bit_length() - 8
    return (octave + 1) * 128 + (value >> octave) - 128


def _zigzag(value: int) -> bytes:
    """At most 9 bytes. Their ninth byte would hold eight bits, unlike plain LEB128: counts stay below that."""
    rest = -2 * value - 1 if value < 0 else 2 * value
    parts = bytearray()
    while rest > 0x7F:
        parts.append(rest & 0x7F | 0x80)
        rest >>= 7
    parts.append(rest)
    return bytes(parts)


def _moments(histogram: Histogram) -> tuple[float, float]:
    """Mean and standard deviation, each bucket's values standing at its top, as percentiles do."""
    values = [(min(top, histogram.maximum), count) for top, count in histogram.buckets]
    mean = sum(value * count for value, count in values) / histogram.count
    square = sum((value - mean) ** 2 * count for value, count in values) / histogram.count
    return mean, math.sqrt(square)
