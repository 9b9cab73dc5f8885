"""Every status that docs/hypercalls.md claims for a call comes about, and it claims every one that is known to."""

import re
from pathlib import Path

import pytest

from runtime.abi import HvStatus, HypercallCode, PartitionProperty
from runtime.hypercalls import caller as hypercalls
from tests.runtime import hypercall_cases_tree, hypercall_cases_vps
from tests.runtime.hypercall_scene import Scene
from tests.runtime.hypervisor_world import World

ROOT = Path(__file__).parents[2]
CASES = hypercall_cases_tree.CASES | hypercall_cases_vps.CASES
_PAIRS = [(code, status) for code in HypercallCode for status in CASES.get(code, {})]


@pytest.mark.parametrize(("code", "status"), _PAIRS, ids=lambda value: value.name)
def test_each_status_of_each_call_comes_about(code: HypercallCode, status: HvStatus) -> None:
    """On a machine of real relations; where it is a refusal, nothing has changed."""
    assert CASES[code][status](Scene(code)) is status


def _documented() -> dict[str, set[str]]:
    """Call: its own refusals, from the table of rules."""
    found: dict[str, set[str]] = {}
    for line in (ROOT / "docs" / "hypercalls.md").read_text().splitlines():
        cells = [cell.strip().replace("`", "") for cell in line.strip("|").split("|")]
        if line[:1] == "|" and len(cells) == 6 and cells[0] in HypercallCode.__members__:
            found[cells[0]] = {word for word in re.split(r", ", cells[4]) if word != "—"}
    return found


def test_the_table_claims_the_statuses_that_are_tested_and_no_others() -> None:
    documented = _documented()
    assert set(documented) == {code.name for code in HypercallCode}
    for code in HypercallCode:
        tested = {status.name for status in CASES[code] if status is not HvStatus.SUCCESS}
        assert HvStatus.SUCCESS in CASES[code], code.name
        assert documented[code.name] == tested, code.name


def test_every_property_stands_in_the_table_with_its_code() -> None:
    text = (ROOT / "docs" / "hypercalls.md").read_text()
    found: dict[str, int] = {}
    for names, codes in re.findall(
        r"^\| ([`A-Z_, ]+) \| ((?:0x[0-9A-F]+,? ?)+) \| [^|]+ \| [^|]+ \|$", text, re.MULTILINE
    ):
        found |= zip(
            re.findall(r"`(\w+)`", names), (int(code, 16) for code in codes.split(", ")), strict=True
        )
    assert {code.name: int(code) for code in PartitionProperty}.items() <= found.items()


def test_calls_that_are_not_there_are_answered_as_the_table_says() -> None:
    text = (ROOT / "docs" / "hypercalls.md").read_text()
    rows = re.findall(r"^\| `\w+` \| (0x[0-9A-F]+) \| `(\w+)` \|", text, re.MULTILINE)
    assert len(rows) > 10
    world = World()
    for number, status in rows:
        assert int(number, 16) not in set(HypercallCode)
        for args in ({}, {"partition": 1}, {"vp": 0}):
            assert world.call(1, int(number, 16), args).status is HvStatus[status], number


def test_each_call_has_a_method_of_its_own() -> None:
    families = {base.__module__ for base in hypercalls.HypercallPort.__bases__}
    folder = ROOT / "runtime" / "hypercalls"
    source = "\n".join((folder / f"{module.rpartition('.')[2]}.py").read_text() for module in families)
    for code in HypercallCode:
        assert f"HypercallCode.{code.name}," in source or f"HypercallCode.{code.name})" in source, code.name
