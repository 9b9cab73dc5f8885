"""The commands for kept results, as a shell calls them."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from runtime.cli import main
from runtime.exits import ExitCode
from runtime.measure.result_store import opened
from runtime.measure.results import decode_run, encode_run
from tests.runtime.result_making import conditions, missing, rounds, row, run

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Call:
    """Returns the exit code and what went to either stream. Three runs are kept: old, new, elsewhere."""
    monkeypatch.setenv("PARTVISOR_RESULTS", str(tmp_path / "results.sqlite"))
    rng = random.Random(1)
    old = run(row("ring", rounds=rounds(rng, 240, 6)), row(rounds=rounds(rng, 900, 6)), missing("futex"))
    new = run(row("ring", rounds=rounds(rng, 480, 6)), row(rounds=rounds(rng, 900, 6)), number=2)
    elsewhere = run(row("ring", rounds=rounds(rng, 240, 6)), number=3, conditions=conditions(machine="other"))
    with opened() as store:
        for each in (old, new, elsewhere):
            store.save(each)

    def call(*words: object) -> tuple[int, str, str]:
        capfd.readouterr()
        code = main(["bench", *map(str, words)])
        out, err = capfd.readouterr()
        return code, out, err

    return call


def answer(found: tuple[int, str, str]) -> Any:
    assert found[0] == ExitCode.DONE, found
    return json.loads(found[1])


def test_the_list_is_newest_first(call: Call) -> None:
    assert [each["id"][-1] for each in answer(call("list", "--json"))] == ["3", "2", "1"]
    assert "2 of 3" in call("list")[1]


def test_show_gives_every_row_and_says_why_one_is_missing(call: Call) -> None:
    found = answer(call("show", "latest~2", "--baseline", "pipe", "--json"))
    rows = {each["row"].split("/")[0]: each for each in found["rows"]}
    assert rows["futex"]["reason"] == "no such package"
    assert rows["ring"]["to_baseline"] == pytest.approx(240 / 900, rel=0.2)
    assert rows["ring"]["to_limit"] == pytest.approx(2, rel=0.2)
    assert rows["pipe"]["to_baseline"] == 1
    assert rows["pipe"]["switches"] == pytest.approx(601 / 600, abs=1e-3)
    assert found["conditions"]["kernel"] == "6.1.0"
    code, _, err = call("show", "latest", "--baseline", "nothing")
    assert (code, err.count("\n")) == (ExitCode.FAILED, 1)


def test_compare_finds_the_change_and_refuses_other_machines(call: Call) -> None:
    found = answer(call("compare", "latest~2", "latest~1", "--json"))
    verdicts = {
        each["row"].split("/")[0]: each["verdict"] for each in found["rows"] if each["percentile"] == 50
    }
    assert verdicts == {"ring": "slower", "pipe": "no difference shown"}
    code, _, err = call("compare", "latest~1", "latest")
    assert code == ExitCode.FAILED
    assert "machine (host (x86_64) and other)" in err
    code, out, _ = call("compare", "latest~1", "latest", "--force")
    assert code == ExitCode.DONE
    assert "conditions differ: machine: host (x86_64) and other" in out
    assert "faster" in out


def test_thresholds_decide_the_exit_code(call: Call, tmp_path: Path) -> None:
    limits = tmp_path / "ci.toml"
    limits.write_text('[[threshold]]\nrows = "ring/*"\nagainst = "limit"\nat_most = 3\n')
    assert call("show", "latest~2", "--thresholds", limits)[0] == ExitCode.DONE
    code, out, _ = call("show", "latest~1", "--thresholds", limits)
    assert code == ExitCode.FAILED
    assert "broken" in out
    limits.write_text('[[threshold]]\nrows = "*"\nagainst = "run"\nat_most = 1.3\n')
    assert call("compare", "latest~2", "latest~1", "--thresholds", limits)[0] == ExitCode.FAILED
    faster = call("compare", "latest~1", "latest~2", "--thresholds", limits)
    assert (faster[0], "futex" in faster[1]) == (ExitCode.DONE, False)  # not installed, here nor there
    limits.write_text('[[threshold]]\nrows = "ring*"\nagainst = "run"\nat_most = 1.3\n')
    assert call("compare", "latest~1", "latest~2", "--thresholds", limits)[0] == ExitCode.DONE
    assert call("show", "--thresholds", limits)[0] == ExitCode.USAGE


def test_files_are_written_whole_and_read_back(call: Call, tmp_path: Path) -> None:
    made = tmp_path / "made"
    assert (
        call(
            "export",
            "latest~2",
            "--hgrm",
            made / "p",
            "--hlog",
            made / "x.hlog",
            "--document",
            made / "run.json",
        )[0]
        == ExitCode.DONE
    )
    assert {path.name for path in (made / "p").iterdir()} == {
        "ring_64_block_two-cpus.hgrm",
        "pipe_64_block_two-cpus.hgrm",
    }
    assert (made / "x.hlog").read_text().count("Tag=") == 12
    assert decode_run((made / "run.json").read_bytes()).id == f"{1:012x}"
    assert {path.name for path in made.iterdir()} == {"p", "x.hlog", "run.json"}
    first, second = (
        answer(call("show", made / "run.json", "--json")),
        answer(call("show", "latest~2", "--json")),
    )
    assert first == second
    code, _, err = call("show", "latest", "--html", "/proc/none/page.html")
    assert (code, err.count("\n")) == (ExitCode.FAILED, 1)
    assert call("show", "latest", "--html", made / "page.html")[0] == ExitCode.DONE
    assert (made / "page.html").read_text().startswith("<!DOCTYPE html>")
    assert call("export", "latest")[0] == ExitCode.USAGE
    assert call("export", "latest", "--rows", "none*", "--hlog", made / "y")[0] == ExitCode.FAILED


def test_show_draws_a_picture_of_the_chosen_rows(call: Call, tmp_path: Path) -> None:
    for rows, there in (("*", True), ("pipe/*", False)):
        assert call("show", "latest~1", "--rows", rows, "--svg", tmp_path / "a.svg")[0] == ExitCode.DONE
        drawn = (tmp_path / "a.svg").read_text()
        assert drawn.startswith("<svg ")
        assert ("ring · " in drawn) == there
    code, _, err = call("show", "latest", "--rows", "none", "--svg", tmp_path / "b.svg")
    assert (code, err.count("\n"), (tmp_path / "b.svg").exists()) == (ExitCode.FAILED, 1, False)


def test_pinned_results_go_by_name_only(call: Call) -> None:
    ids = [each["id"] for each in answer(call("list", "--json"))]
    assert answer(call("pin", "latest", "latest~2", "--json")) == {"pinned": [ids[0], ids[2]]}
    assert answer(call("delete", "--older-than", "0", "--json")) == {"deleted": 1}
    assert [each["pinned"] for each in answer(call("list", "--json"))] == [True, True]
    assert call("pin", "--off", "latest")[1] == f"unpinned: {ids[0]}\n"
    assert answer(call("delete", "--keep", "0", "--json")) == {"deleted": 1}
    assert answer(call("delete", "latest", "--json")) == {"deleted": 1}
    assert call("pin")[0] == ExitCode.USAGE
    assert call("pin", "nothing")[0] == ExitCode.NOT_FOUND
    assert call("delete", "--keep", "1", "--older-than", "1")[0] == ExitCode.USAGE


def test_deleting_names_all_or_deletes_nothing(call: Call) -> None:
    assert call("delete", "latest", "nothing")[0] == ExitCode.NOT_FOUND
    assert len(answer(call("list", "--json"))) == 3
    assert call("delete")[0] == ExitCode.USAGE
    assert call("delete", "latest", "--keep", "1")[0] == ExitCode.USAGE
    assert answer(call("delete", "latest", "--json")) == {"deleted": 1}
    assert answer(call("delete", "--keep", "1", "--json")) == {"deleted": 1}
    assert [each["id"][-1] for each in answer(call("list", "--json"))] == ["2"]
    assert call("delete", "--keep", "0")[1] == "1 deleted\n"
    assert "bench ladder" in call("list")[1]


def test_another_store_and_a_stored_document_can_be_named(call: Call, tmp_path: Path) -> None:
    assert answer(call("list", "--json", "--store", tmp_path / "other.sqlite")) == []
    document = tmp_path / "base.json"
    document.write_bytes(encode_run(run(row("ring", rounds=rounds(random.Random(5), 240, 6)), number=9)))
    found = answer(call("compare", document, "latest~1", "--json"))
    assert found["rows"][0]["verdict"] == "slower"
