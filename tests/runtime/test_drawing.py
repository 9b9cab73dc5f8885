"""Drawings and pages: whatever text comes in stays text, scales are faithful, and a page needs nothing from outside."""

import itertools
import math
import random
import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.drawing.bars import Bar, Part, SplitBar, bar_chart, split_chart
from runtime.drawing.lines import Axis, Series, line_chart
from runtime.drawing.markup import Markup, joined, tag
from runtime.drawing.page import LegendEntry, facts, legend, page, section, swatches, table, tabs
from runtime.drawing.scales import (
    LinearScale,
    LogScale,
    PercentileScale,
    Scale,
    duration,
    log_scale_around,
    three_digits,
)
from runtime.exits import CommandError
from runtime.measure.comparison import compare_runs
from runtime.measure.results_page import distribution_points, percentile_points, run_page
from runtime.measure.results_picture import picture
from tests.runtime.result_making import conditions, hops, latencies, missing, open_row, rounds, row, run

HOSTILE = st.text(st.sampled_from("<>&\"'/=! `;scriptonload\0\x1b\ud800\n")) | st.text(max_size=30)
ABOVE_ZERO = st.floats(1e-6, 1e12)


class Collector(HTMLParser):
    """Tags, attributes and text of a document; unbalanced ones are an error."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.values: list[str] = []
        self.text = ""

    def handle_starttag(self, name: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(name)
        self.values += [value for _, value in attributes if value is not None]
        if name not in ("meta", "br"):
            self.open.append(name)

    def handle_endtag(self, name: str) -> None:
        assert self.open.pop() == name

    def handle_data(self, data: str) -> None:
        self.text += data


def collected(document: str) -> Collector:
    collector = Collector()
    collector.feed(document)
    collector.close()
    assert collector.open == []
    return collector


@given(HOSTILE, HOSTILE)
def test_text_stays_text_in_content_and_in_attributes(first: str, second: str) -> None:
    found = collected(tag("p", first, tag("b", second), data_tip=first))
    assert found.tags == ["p", "b"]
    assert len(found.values) == 1
    for text in (found.text, *found.values):
        assert "\0" not in text
    plain = re.sub(r"[^\w<>&\"'/=! `;]", "", first)
    assert re.sub(r"[^\w<>&\"'/=! `;]", "", found.values[0]) == plain
    joined(first, second).encode()  # it can be written


def a_page(text: str) -> str:
    """Every kind of piece, with this text wherever text may stand."""
    axis = Axis(LogScale(1, 100), text, lambda value: text)
    line = Series(text, [(1, 1), (50, 50)], 0, tip=text, dots=True)
    split = SplitBar(text, [Part(text, 0.5, 1, text), Part("x", 0.5, 2, text)], text)
    pieces = [
        line_chart([line], axis, axis, text),
        bar_chart(
            [Bar(text, 5, text, 1, text, 9), Bar(text, None, text, 2)], LogScale(1, 10), lambda _: text, text
        ),
        split_chart([split], text),
        legend([LegendEntry(text, 0)]),
        swatches({text: 1}),
        table([text], [[text]]),
        facts({text: text}),
        tabs("t", {text: text, text + "2": text}),
    ]
    return page(text, text, [section(text, text, *pieces)], text)


@given(HOSTILE)
@settings(max_examples=40, deadline=None)
def test_no_text_changes_what_a_page_is_made_of(text: str) -> None:
    harmless = "x" * len(text)  # what fits where depends on the length
    assert collected(a_page(text)).tags == collected(a_page(harmless)).tags


def test_a_drawing_is_well_formed_xml() -> None:
    for each in re.findall(r"<svg.*?</svg>", a_page("a < b & c")):
        ElementTree.fromstring(each)


def scales() -> st.SearchStrategy[Scale]:
    pairs = st.tuples(ABOVE_ZERO, st.floats(1.01, 1e6))
    return (
        pairs.map(lambda pair: LogScale(pair[0], pair[0] * pair[1]))
        | pairs.map(lambda pair: LinearScale(pair[0], pair[0] * pair[1]))
        | st.floats(2, 7).map(PercentileScale)
    )


@given(scales(), st.lists(st.floats(0, 1e18), min_size=2))
def test_positions_rise_with_values_and_ticks_stand_on_the_axis(scale: Scale, values: list[float]) -> None:
    positions = [scale.position(value) for value in sorted(values)]
    assert all(0 <= one <= two <= 1 for one, two in itertools.pairwise(positions))
    ticks = scale.ticks()
    assert len(ticks) <= 40
    assert all(one < two for one, two in itertools.pairwise(ticks))
    assert all(one < two for one, two in itertools.pairwise([scale.position(tick) for tick in ticks]))


@given(st.lists(st.just(0.0) | st.floats(1e-9, 1e15), min_size=1))
def test_a_scale_around_values_holds_them(values: list[float]) -> None:
    scale = log_scale_around(values)
    assert all(scale.low < value < scale.high for value in values if value > 0)


def test_each_nine_takes_as_much_room_as_the_one_before() -> None:
    scale = PercentileScale(4)
    places = [scale.position(value) for value in (0, 90, 99, 99.9, 99.99)]
    assert all(math.isclose(place, number / 4, abs_tol=1e-9) for number, place in enumerate(places))
    assert scale.position(100) == 1


def test_figures_are_written_short() -> None:
    shown = {
        0: "0 ns",
        640: "640 ns",
        1250: "1.25 µs",
        999_600: "1 ms",
        20e6: "20 ms",
        3.5e9: "3.5 s",
        0.5: "0.5 ns",
    }
    for ns, text in shown.items():
        assert duration(ns) == text
    assert three_digits(1234567) == "1,234,567"
    assert three_digits(0.0012345) == "0.00123"


def test_curves_are_those_of_the_histogram_and_reach_as_far_as_it_knows() -> None:
    whole = latencies(random.Random(1), 1000, 5000)
    points = percentile_points(whole, 6)
    assert all(value == whole.percentile(percent) for percent, value in points)
    (begin, smallest), (end, _) = points[0], points[-1]
    assert (begin, smallest) == (0.0, whole.minimum)
    assert 99.8 < end < 99.99  # five thousand values: three nines, not six
    shares = distribution_points(whole)
    assert all(one[0] <= two[0] and one[1] <= two[1] for one, two in itertools.pairwise(shares))
    assert shares[-1] == (whole.maximum, 100.0)


def example(text: str = "plain") -> str:
    rng = random.Random(1)
    whole = run(
        row(
            "ring",
            group="ours " + text[:30],
            rounds=rounds(rng, 300, 5),
            hops=hops(rng, doorbell_to_server_awake=100, copy=200),
        ),
        row("pipe", rounds=rounds(rng, 9000, 5)),
        missing("futex", text or "x"),
        *(open_row(rng, "ring", load, 500, group="ours " + text[:30]) for load in (1e3, 1e4)),
        conditions=conditions(cpu_model=text),
        label=text,
    )
    other = run(*whole.rows, number=2, conditions=conditions(cpu_model=text))
    return run_page(whole, compare_runs(other, whole, percents=(50.0,)), baseline="pipe")


def test_a_results_page_shows_every_part_and_fetches_nothing() -> None:
    document = example()
    found = collected(document)
    for words in (
        "Round trip",
        "Latency by percentile",
        "Distribution",
        "Latency under load",
        "Where the time goes",
    ):
        assert words in found.text
    for words in ("Compared", "no difference shown", "The limit over time", "Conditions", "not installed"):
        assert words in found.text
    assert not re.search(r"""https?:|src=|@import|url\(|<link|\bfetch\(|XMLHttp""", document)
    assert "default-src 'none'" in found.values[found.values.index("Content-Security-Policy") + 1]
    assert all(f">{name}<" in document for name in ("wake-up", "× pipe"))  # whose time a hop is; the baseline
    ids = re.findall(r'\bid="([^"]*)"', document)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'data-panel="([^"]*)"', document)) <= set(ids)
    legends = set(re.findall(r'<button[^>]*data-key="([^"]*)"', document))
    assert set(re.findall(r'<g[^>]*class="series[^>]*data-key="([^"]*)"', document)) <= legends | {
        "counted",
        "taken again",
    }


def test_a_results_page_escapes_what_a_result_file_says() -> None:
    hostile = "</script><img src=x onerror=alert(1)>\"'&"
    assert collected(example(hostile)).tags == collected(example()).tags


def drawn(text: str) -> ElementTree.Element:
    """A picture, parsed as XML; `text` stands wherever a result's file may say something."""
    rng = random.Random(1)
    whole = run(
        row("ring", group=f"partvisor {text[:30]}", rounds=rounds(rng, 300, 5)),
        row("pipe", group=text[:60] or "x", rounds=rounds(rng, 9000, 5)),
        row("pipe", payload_bytes=4096, rounds=rounds(rng, 9000, 5)),
        row("hypercall", payload_bytes=0, group="partvisor calls", rounds=rounds(rng, 9000, 5)),
        missing("futex", text or "x"),
        open_row(rng, "ring", 1e3, 500),
        conditions=conditions(cpu_model=text),
        revision=text,
    )
    return ElementTree.fromstring(picture(whole, whole.rows))


def test_a_picture_stands_alone_and_has_every_row_of_the_smallest_payload() -> None:
    found = drawn("plain")
    texts = [each.text or "" for each in found.iter("{http://www.w3.org/2000/svg}text")]
    for name in ("ring · ", "pipe · ", "hypercall · "):  # what has no payload stands with the smallest
        assert sum(each.startswith(name) for each in texts) == 1
    assert "not installed: futex" in texts
    assert any("plain" in each for each in texts)  # the conditions
    whole = ElementTree.tostring(found, encoding="unicode")
    assert not re.search(r"https?:(?!//www\.w3\.org/2000/svg)|href|url\(|var\(|@import|<script", whole)
    first = found.find("{http://www.w3.org/2000/svg}rect")
    assert first is not None
    assert (first.get("fill"), first.get("width")) == ("#ffffff", found.get("width"))  # legible on any page


def test_a_picture_escapes_what_a_result_file_says() -> None:
    hostile = "</svg><script>alert(1)</script>\"'&"
    tags = [
        [each.tag for each in drawn(text).iter() if "text" not in each.tag] for text in (hostile, "plain")
    ]
    assert tags[0] == tags[1]


def test_there_is_no_picture_of_nothing() -> None:
    with pytest.raises(CommandError, match="nothing to draw"):
        picture(run(), [])


def test_an_empty_run_makes_a_page_too() -> None:
    assert "Conditions" in collected(run_page(run())).text


def test_markup_is_not_escaped_twice() -> None:
    assert joined(Markup("<b>"), "<b>", [tag("i", "&")], None) == "<b>&lt;b&gt;<i>&amp;</i>"
