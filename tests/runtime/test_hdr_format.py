"""HdrHistogram's formats, read back by its own Python package."""

import itertools
import random

import pytest
from hdrh.histogram import HdrHistogram  # type: ignore[import-untyped]
from hdrh.log import HistogramLogReader  # type: ignore[import-untyped]
from hypothesis import given
from hypothesis import strategies as st

from bus.native import Histogram
from runtime.measure.hdr_format import COUNT_END, VALUE_END, encoded, hgrm, hlog
from runtime.measure.results import ResultError
from tests.runtime.result_making import missing, rounds, row, run

VALUES = (
    st.integers(0, 5000)
    | st.integers(0, 62).map(lambda bit: min(1 << bit, VALUE_END - 1))
    | st.integers(0, VALUE_END - 1)
)


def filled(values: list[int]) -> Histogram:
    histogram = Histogram()
    for value in values:
        histogram.record(value)
    return histogram


@given(st.lists(VALUES, min_size=1, max_size=200))
def test_an_encoded_histogram_is_read_back_bucket_by_bucket(values: list[int]) -> None:
    histogram = filled(values)
    theirs = HdrHistogram.decode(encoded(histogram))
    assert theirs.get_total_count() == histogram.count
    for top, count in histogram.buckets:
        assert theirs.get_count_at_value(top) == count
        assert theirs.get_highest_equivalent_value(top) == top


def test_large_counts_survive() -> None:
    """Zigzag numbers of up to nine bytes."""
    for bits in (6, 7, 13, 20, 40, 57, 60):
        histogram = filled([1000])
        while histogram.count < 1 << bits:
            histogram.merge(histogram)
        assert HdrHistogram.decode(encoded(histogram)).get_count_at_value(1000) == 1 << bits


def test_a_log_has_every_counted_round_under_its_rows_name(tmp_path: object) -> None:
    rng = random.Random(1)
    measured = [
        row(name, rounds=rounds(rng, middle, 3)) for name, middle in (("pipe", 500.0), ("futex", 90.0))
    ]
    whole = run(*measured, missing("other"))
    path = f"{tmp_path}/x.hlog"
    with open(path, "w") as file:
        file.write(hlog(whole, measured))
    reader = HistogramLogReader(path, HdrHistogram(1, 2**40, 2))
    found: dict[str, list[int]] = {}
    while (histogram := reader.get_next_interval_histogram()) is not None:
        found.setdefault(histogram.get_tag(), []).append(histogram.get_total_count())
    reader.close()
    assert found == {each.name: [one.latency.count for one in each.rounds] for each in measured}
    assert f"{whole.started_unix_ns / 1e9:.3f} (seconds since epoch)" in hlog(whole, [])


@given(st.lists(VALUES, min_size=1, max_size=300))
def test_a_table_of_percentiles_rises_to_the_whole(values: list[int]) -> None:
    histogram = filled(values)
    lines = [line for line in hgrm(histogram).splitlines()[2:] if not line.startswith("#")]
    cells = [[float(cell) for cell in line.split()] for line in lines]
    for before, after in itertools.pairwise(cells):
        assert all(one <= two for one, two in zip(before, after, strict=False))
    assert cells[-1] == [float(max(values)), 1.0, len(values)]
    for value, share, count, *_ in cells:
        assert histogram.percentile(share * 100) <= value
        assert count == sum(each for top, each in histogram.buckets if min(top, max(values)) <= value)
    assert f"Total count    = {len(values):12d}" in hgrm(histogram)


def test_what_the_formats_cannot_hold_is_refused() -> None:
    many = filled([1])
    while many.count < COUNT_END:
        many.merge(many)
    for histogram in (Histogram(), filled([VALUE_END]), many):
        with pytest.raises(ResultError):
            encoded(histogram)
        with pytest.raises(ResultError):
            hgrm(histogram)
