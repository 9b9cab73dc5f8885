"""Results: the rules of their parts, and that the JSON document gives back what was put in and takes nothing else."""

import json
import random
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bus.native import Histogram
from runtime.config.model import WaitingKind
from runtime.measure.conditions import (
    LOAD_DIFFERENCE_MAX,
    differences,
    read_conditions,
    read_revision,
    read_versions,
)
from runtime.measure.results import Mode, Placement, ResultError, Row, Run, Status, decode_run, encode_run
from tests.runtime.result_making import conditions, hops, missing, rounds, row, run

TEXT = st.text(st.characters(codec="utf-8"), max_size=20)


@st.composite
def runs(draw: st.DrawFn) -> Run:
    rng = random.Random(draw(st.integers(0, 1000)))
    rows: list[Row] = []
    for number in range(draw(st.integers(0, 3))):
        common: dict[str, Any] = {
            "payload_bytes": draw(st.integers(0, 1 << 40)),
            "waiting": draw(st.sampled_from(WaitingKind)),
            "placement": draw(st.sampled_from(Placement)),
        }
        if draw(st.booleans()):
            rows.append(missing(f"t{number}", draw(TEXT) or "x", **common))
        elif draw(st.booleans()):
            some = rounds(rng, 500, draw(st.integers(1, 3)), values=20)
            rows.append(row(f"t{number}", rounds=some, hops=hops(rng, wake=90), **common))
        else:
            rows.append(
                row(
                    f"t{number}",
                    mode=Mode.OPEN,
                    offered_per_s=draw(st.floats(1e-3, 1e9)),
                    rounds=rounds(rng, 70, 1, values=20),
                    **common,
                )
            )
    return run(
        *rows, label=draw(TEXT), versions={"python": draw(TEXT)}, conditions=conditions(kernel=draw(TEXT))
    )


@given(runs())
@settings(max_examples=50)
def test_a_document_gives_back_the_run(whole: Run) -> None:
    assert decode_run(encode_run(whole)) == whole


def paths(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Of every map and every leaf."""
    found = [path]
    if isinstance(value, dict):
        for key, each in value.items():
            found += paths(each, (*path, key))
    elif isinstance(value, list):
        for index, each in enumerate(value):
            found += paths(each, (*path, index))
    return found


EXAMPLE = run(row(rounds=rounds(random.Random(1), 500, 2, values=20)), missing("futex"))
FREE = {"versions"}  # a map whose keys are anybody's


def test_every_unknown_key_is_refused_with_its_path() -> None:
    plain = json.loads(encode_run(EXAMPLE))
    for path in paths(plain):
        changed = json.loads(json.dumps(plain))
        target = changed
        for step in path:
            target = target[step]
        if not isinstance(target, dict) or FREE & set(path):
            continue
        target["surprise"] = 1
        with pytest.raises(ResultError, match="surprise"):
            decode_run(json.dumps(changed).encode())


def test_every_leaf_of_another_type_is_refused() -> None:
    plain = json.loads(encode_run(EXAMPLE))
    for path in paths(plain):
        changed = json.loads(json.dumps(plain))
        target = changed
        for step in path[:-1]:
            target = target[step]
        if not path or isinstance(target[path[-1]], dict | list):
            continue
        target[path[-1]] = [{}]
        with pytest.raises(ResultError):
            decode_run(json.dumps(changed).encode())


@pytest.mark.parametrize(
    "data", [b"", b"{}", b"[]", b"null", b"\xff", b'{"format": "other"}', b"[" * 100_000]
)
def test_what_is_no_result_is_one_line_of_error(data: bytes) -> None:
    with pytest.raises(ResultError, match="no result of a benchmark") as caught:
        decode_run(data)
    assert "\n" not in str(caught.value)


def test_a_newer_document_says_so() -> None:
    plain = json.loads(encode_run(EXAMPLE)) | {"version": 2, "new_key": 1}
    with pytest.raises(ResultError, match="version 2"):
        decode_run(json.dumps(plain).encode())


def test_rules_between_fields_hold() -> None:
    some = rounds(random.Random(1), 500, 1, values=20)
    changed = tuple(msgspec.structs.replace(one, changed=True) for one in some)
    for wrong in (
        {"rounds": ()},
        {"rounds": changed},
        {"rounds": some, "status": Status.FAILED, "reason": "x"},
        {"status": Status.NOT_INSTALLED},
        {"rounds": some, "offered_per_s": 1.0},
        {"rounds": some, "mode": Mode.OPEN},
    ):
        with pytest.raises(ValueError, match=r"\w"):
            row(**wrong)
    with pytest.raises(ValueError, match="latency"):
        msgspec.structs.replace(some[0], latency=Histogram())
    with pytest.raises(ValueError, match="two rows"):
        run(missing("pipe"), missing("pipe"))


def test_rounds_that_were_taken_again_count_in_nothing() -> None:
    good, bad = rounds(random.Random(1), 500, 1), rounds(random.Random(2), 50_000, 1)
    both = row(rounds=(*good, msgspec.structs.replace(bad[0], changed=True)))
    assert both.counted == good
    assert both.latency == good[0].latency


def test_names_are_unique_in_what_they_depend_on() -> None:
    some = rounds(random.Random(1), 500, 1, values=20)
    rows = [
        row(transport, payload_bytes=payload, waiting=waiting, placement=placement, rounds=some)
        for transport in ("pipe", "futex")
        for payload in (64, 4096)
        for waiting in WaitingKind
        for placement in Placement
    ]
    rows += [row(mode=Mode.OPEN, offered_per_s=load, rounds=some) for load in (1000.0, 1e6, 2e6)]
    assert len({each.name for each in rows}) == len(rows)
    assert rows[0].name == "pipe/64/adaptive/same-cpu"


def test_conditions_are_read_and_those_of_one_moment_are_the_same() -> None:
    found = read_conditions((0,))
    assert found.cpus == (0,)
    assert all(str(getattr(found, name)) for name in found.__struct_fields__)
    assert read_versions(("pyzmq", "no-such-package")).keys() == {"python", "libc", "partvisor", "pyzmq"}
    assert read_revision()
    again = read_conditions((0,))
    assert differences(run(conditions=found), run(conditions=again)).keys() <= {"load before"}


def test_every_condition_that_differs_is_named_and_a_revision_is_none() -> None:
    base = run()
    others = {
        "machine": "else",
        "kernel": "else",
        "cpu_model": "else",
        "cpus": (0, 2),
        "governor": "powersave",
        "clock_source": "hpet",
        "scheduler_class": "SCHED_FIFO",
        "load_before": 0.25 + LOAD_DIFFERENCE_MAX + 0.01,
        "idle_cpus": "kept awake",
        "idle_driver": "else",
    }
    assert list(others) == list(base.conditions.__struct_fields__)
    for name, other in others.items():
        assert list(differences(base, run(conditions=conditions(**{name: other})))) == [
            name.replace("_", " ")
        ]
    assert differences(base, run(revision="else", number=2, label="x")) == {}
    assert differences(base, run(versions={"python": "3.11.7", "partvisor": "9"})) == {}
    assert list(differences(base, run(versions={"python": "3.12.0", "pyzmq": "27"}))) == [
        "version of python",
        "version of pyzmq",
    ]
    assert differences(base, run(conditions=conditions(load_before=0.3))) == {}
