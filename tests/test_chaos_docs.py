"""docs/chaos.md and docs/faults.md against the code: each key and its default, each check, each fault; campaigns."""

import re
from pathlib import Path
from typing import Any, Final

import msgspec
import pytest

from runtime.chaos.experiment.checks.check import CHECKS
from runtime.chaos.experiment.journal import Outcome
from runtime.chaos.experiment.loading import load_experiment
from runtime.chaos.experiment.model import Experiment, Table
from runtime.chaos.experiment.schedule import draw
from runtime.chaos.faults.catalogue import FAULTS
from runtime.chaos.faults.page import page
from tests.runtime.chaos_making import event, evidence, fate, injection
from tests.test_docs import ROOT, blocks, table_rows

CAMPAIGNS: Final = sorted((ROOT / "configs/chaos").glob("*.toml"))


def text_of(default: Any) -> str:
    match default:
        case msgspec.NODEFAULT:
            return "required"
        case None | "" | ():
            return ""
        case bool():
            return str(default).lower()
    return str(getattr(default, "value", default))


def key_rows() -> list[list[str]]:
    """Of all tables that begin with "key"."""
    rows, found, inside = table_rows("chaos.md"), [], False
    for row, below in zip(rows, [*rows[1:], [""]], strict=True):
        if set(below[0]) == {"-"}:
            inside = row[0] == "key"
        elif inside and set(row[0]) != {"-"}:
            found.append(row)
    return found


def test_every_key_of_an_experiment_stands_in_the_tables_with_its_default() -> None:
    told = {(row[0], row[1].replace("_", "").replace('"', "")) for row in key_rows()}
    wanted = set()
    for shape in set(Table.__subclasses__()) - {Experiment}:
        for field in msgspec.structs.fields(shape):
            default = field.default if field.default_factory is msgspec.NODEFAULT else ""
            wanted.add((field.encode_name, "0" if field.name == "at_ms" else text_of(default)))
    assert told == wanted


def test_every_check_stands_in_the_table_with_its_parameters() -> None:
    rows = {row[0]: row[1:] for row in table_rows("chaos.md") if row[0] in CHECKS}
    assert list(rows) == list(CHECKS)
    for name, check in CHECKS.items():
        meaning, parameters = rows[name]
        assert meaning.startswith(check.meaning)
        assert parameters == ", ".join(f"{one.name}={text_of(one.default)}" for one in check.parameters)


def test_the_check_of_ones_own_is_one() -> None:
    (source,) = [block.text for block in blocks(ROOT / "docs/chaos.md") if "judge" in block.text]
    assert len([line for line in source.splitlines() if line.strip()]) <= 20
    names: dict[str, Any] = {}
    exec(source, names)
    check = names["FewDeaths"]()
    died = event("partition.exited", 50, "guest1")
    for fates, outcome in (((fate(1),), Outcome.PASSED), ((fate(1, fired=0),), Outcome.VIOLATED)):
        seen = evidence({}, (injection(1),), [died], fates=fates)
        assert check.judge(seen, {"spare": 0}).outcome is outcome
        assert check.judge(seen, {"spare": 1}).outcome is Outcome.PASSED


def test_the_page_of_faults_is_the_catalogue() -> None:
    told = (ROOT / "docs/faults.md").read_text()
    assert told == page(), "make it again: python -m runtime.chaos.faults.page > docs/faults.md"
    assert set(re.findall(r"^\| `([a-z-]+)` \|", told, re.MULTILINE)) == set(FAULTS)


def test_every_campaign_stands_in_the_table() -> None:
    rows = {row[0] for row in table_rows("chaos.md")}
    assert CAMPAIGNS
    assert {path.name for path in CAMPAIGNS} <= rows


@pytest.mark.parametrize("path", CAMPAIGNS, ids=lambda path: path.name)
def test_a_campaign_is_valid_and_its_first_comment_runs_it(path: Path) -> None:
    experiment, _ = load_experiment(path)
    assert experiment.name == path.stem
    assert experiment.experiment.description
    assert f"partvisor chaos run configs/chaos/{path.name}" in path.read_text().split("\n[")[0]
    assert any(draw(experiment, seed, FAULTS) for seed in range(10))
