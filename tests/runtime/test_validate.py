"""Every mistake at once, each with its path, its line, what stands there and what is allowed."""

import json
import re
import tempfile
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.config.document import ConfigError, read
from runtime.config.loading import load
from runtime.config.model import MachineConfig, json_schema, to_tables
from runtime.config.toml_lines import lines_of_values
from runtime.config.validate import PROBLEMS_MAX, find_problems
from tests.runtime.test_config import config_file, machine_tables, minimal
from tests.runtime.toml_writing import TomlWriter

CONFIGS = Path(__file__).parents[2] / "configs"
FIVE_MISTAKES = """\
[machine]
name = "m"
memory = "64MB"
[[root.device]]
name = "disk0"
kind = "disk"
backend = "memory"
size = "1MiB"
[[partition]]
name = "child"
program = "json.decoder:JSONObject"
prallel = true
vps = 0
  [[partition.device]]
  name = "disk1"
  [[partition.device]]
  name = "disk0"
  ring_bytes = 5000
"""


def mistakes(text: str, folder: Path) -> list[tuple[str, int | None, str, str]]:
    path = folder / "machine.toml"
    path.write_text(text, encoding="utf-8")
    try:
        load(path)
    except ConfigError as error:
        return [
            (problem.path_text, problem.line, problem.found, problem.allowed) for problem in error.problems
        ]
    return []


def paths_of(tables: dict[str, Any], folder: Path) -> list[str]:
    return [path for path, *_ in mistakes(TomlWriter(tables).text, folder)]


def test_five_mistakes_are_five_reports(tmp_path: Path) -> None:
    found = mistakes(FIVE_MISTAKES, tmp_path)
    assert [mistake[:3] for mistake in found] == [
        ("machine.memory", 3, '"64MB"'),
        ("partition[0].prallel", 12, "an unknown key"),
        ("partition[0].vps", 13, "0"),
        ("partition[0].device[0].name", 15, '"disk1"'),
        ("partition[0].device[1].ring_bytes", 18, "5000"),
    ]
    allowed = [words for *_, words in found]
    assert "(units B, KiB, MiB, GiB, TiB)" in allowed[0]
    assert "program" in allowed[1]
    assert allowed[2] == "a whole number from 1 to 64"
    assert allowed[3] == 'a [[root.device]]: "disk0"'
    assert "a multiple of 4096 bytes" in allowed[4]


def test_the_text_of_an_error_has_a_line_for_each_mistake(tmp_path: Path) -> None:
    path = tmp_path / "five.toml"
    path.write_text(FIVE_MISTAKES)
    with pytest.raises(ConfigError) as caught:
        load(path)
    first, *lines = str(caught.value).splitlines()
    assert first == f"{path}: 5 mistakes"
    assert len(lines) == 5
    assert lines[2] == f"{path}:13: partition[0].vps: found 0; allowed: a whole number from 1 to 64"


CHILD = {"name": "b", "program": "json.decoder:JSONObject"}
DISK = {"name": "disk1", "kind": "disk", "backend": "memory", "size": 4096}


@pytest.mark.parametrize(
    ("change", "paths"),
    [
        # shapes
        ({"machine": 3}, ["machine"]),
        ({"partition": 3}, ["partition"]),
        ({"partition": {"name": "x"}}, ["partition"]),
        ({"root": {"device": [3]}}, ["root.device[0]"]),
        ({"typo": 1}, ["typo"]),
        ({"machine": {}}, ["machine.name"]),
        ({"machine": {"name": "m", "on_root_failure": "reboot"}}, ["machine.on_root_failure"]),
        ({"machine": {"name": "A b"}}, ["machine.name"]),
        ({"machine": {"name": "x" * 33}}, ["machine.name"]),
        ({"machine": {"name": "m\n"}}, ["machine.name"]),
        ({"machine": {"name": "m", "memory": True}}, ["machine.memory"]),
        # devices
        ({"root": {"device": [DISK, DISK]}, "partition": []}, ["root.device[1].name"]),
        ({"root": {"device": [DISK | {"backend": "file"}]}, "partition": []}, ["root.device[0].path"]),
        ({"root": {"device": [DISK | {"path": "x"}]}, "partition": []}, ["root.device[0].path"]),
        (
            {"root": {"device": [DISK | {"size": 4608, "block_bytes": 4096}]}, "partition": []},
            ["root.device[0].size"],
        ),
        (
            {"root": {"device": [DISK | {"block_bytes": 1024}]}, "partition": []},
            ["root.device[0].block_bytes"],
        ),
        (
            {"root": {"device": [DISK | {"block_bytes": 512.0}]}, "partition": []},
            ["root.device[0].block_bytes"],
        ),
        ({"root": {"device": [DISK | {"read_only": 1}]}, "partition": []}, ["root.device[0].read_only"]),
        (
            {"root": {"device": [{"name": "a", "kind": "disk", "backend": "memory"}]}, "partition": []},
            ["root.device[0].size"],
        ),
        # partitions
        ({"partition": [CHILD, CHILD]}, ["partition[1].name"]),
        ({"partition": [CHILD | {"name": "root"}]}, ["partition[0].name"]),
        ({"partition": [CHILD | {"parent": "a"}]}, ["partition[0].parent"]),
        ({"partition": [CHILD | {"parent": "b"}]}, ["partition[0].parent"]),
        (
            {"partition": [CHILD | {"parent": "c"}, CHILD | {"name": "c", "parent": "b"}]},
            ["partition[0].parent", "partition[1].parent"],
        ),
        (
            {"partition": [CHILD | {"device": [{"name": "disk0"}, {"name": "disk0"}]}]},
            ["partition[0].device[1].name"],
        ),
        ({"partition": [CHILD | {"privileges": ["fly"]}]}, ["partition[0].privileges[0]"]),
        ({"partition": [CHILD | {"privileges": ["post_messages"] * 2}]}, ["partition[0].privileges[1]"]),
        ({"partition": [CHILD | {"cpus": [4095]}]}, ["partition[0].cpus[0]"]),
        ({"partition": [CHILD | {"cpus": [-1]}]}, ["partition[0].cpus[0]"]),
        ({"partition": [CHILD | {"args": {"big": "x" * 20_000}}]}, ["partition[0].args"]),
        ({"partition": [CHILD | {"args": {"a": [1, 2**64]}}]}, ["partition[0].args.a[1]"]),
        (
            {"partition": [CHILD | {"file": [{"name": "f", "path": "nowhere"}]}]},
            ["partition[0].file[0].path"],
        ),
        ({"partition": [CHILD | {"file": [{"name": "f", "path": "/"}]}]}, ["partition[0].file[0].path"]),
        ({"partition": [CHILD | {"file": [{"name": "f", "path": ""}]}]}, ["partition[0].file[0].path"]),
        (
            {"partition": [CHILD | {"file": [{"name": "f", "path": "no/where", "mode": "write"}]}]},
            ["partition[0].file[0].path"],
        ),
        # programs
        ({"partition": [CHILD | {"program": "json.decoder"}]}, ["partition[0].program"]),
        ({"partition": [CHILD | {"program": "json.nowhere:main"}]}, ["partition[0].program"]),
        ({"partition": [CHILD | {"program": "json.decoder:nothing"}]}, ["partition[0].program"]),
        ({"partition": [CHILD | {"program": "no_such_package.at:all"}]}, ["partition[0].program"]),
        # memory
        ({"machine": {"name": "m", "memory": "66MiB"}}, ["machine.memory"]),
        (
            {"partition": [CHILD | {"memory": "1MiB", "device": [{"name": "disk0", "ring_bytes": "1MiB"}]}]},
            ["partition[0].memory"],
        ),
        (
            {"partition": [CHILD, CHILD | {"name": "c", "parent": "b", "memory": "65MiB"}]},
            ["partition[0].memory"],
        ),
    ],
)
def test_each_mistake_is_found_where_it_is_and_nothing_else_is(
    tmp_path: Path, change: dict[str, Any], paths: list[str]
) -> None:
    assert paths_of(minimal() | change, tmp_path) == paths


def test_a_writable_backing_file_belongs_to_one_device(tmp_path: Path) -> None:
    """The same file twice would be two caches of one disk. Two that only read it are fine."""
    (tmp_path / "a.img").write_bytes(bytes(4096))
    disk = {"kind": "disk", "backend": "file", "path": "a.img"}
    other = disk | {"path": "./a.img", "name": "b"}
    twice = {"device": [disk | {"name": "a"}, other]}
    assert paths_of(minimal() | {"root": twice, "partition": []}, tmp_path) == ["root.device[1].path"]
    reading = {"device": [disk | {"name": "a", "read_only": True}, other | {"read_only": True}]}
    assert paths_of(minimal() | {"root": reading, "partition": []}, tmp_path) == []


def test_a_program_is_not_run_by_being_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "guest_that_acts.py").write_text("raise SystemExit('I ran')\ndef main(partition): ...\n")
    (tmp_path / "guest_that_is_broken.py").write_text("def main(:\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    tables = minimal() | {"partition": [CHILD | {"program": "guest_that_acts:main"}]}
    assert paths_of(tables, tmp_path) == []
    tables["partition"][0]["program"] = "guest_that_is_broken:main"
    ((path, _, found, _),) = mistakes(TomlWriter(tables).text, tmp_path)
    assert path == "partition[0].program"
    assert "invalid syntax" in found


def test_a_date_can_t_be_an_argument(tmp_path: Path) -> None:
    text = TomlWriter(minimal()).text + "[partition.args]\nwhen = 2024-01-01\n"
    assert [path for path, *_ in mistakes(text, tmp_path)] == ["partition[0].args.when"]


def test_a_mistake_from_the_command_line_has_no_line_of_the_file(tmp_path: Path) -> None:
    path = config_file(tmp_path, minimal())
    with pytest.raises(ConfigError) as caught:
        load(path, ["partition.child.vps=0", "machine.naem=x"])
    assert {problem.path_text: problem.line for problem in caught.value.problems} == {
        "partition[0].vps": None,
        "machine.naem": None,
    }


def test_a_file_that_is_wrong_throughout_gets_a_bounded_report(tmp_path: Path) -> None:
    text = "[machine]\nname = 'm'\n" + "".join(f"typo{n} = 1\n" for n in range(1000))
    found = mistakes(text, tmp_path)
    assert len(found) == PROBLEMS_MAX + 1
    assert found[-1][2] == f"{1000 - PROBLEMS_MAX} more mistakes"


def test_no_control_character_of_a_file_reaches_the_terminal(tmp_path: Path) -> None:
    path = tmp_path / "machine.toml"
    path.write_text('[machine]\nname = "\\u001b[2J\\u0007"\n"\\u001b[31m" = 1\n')
    with pytest.raises(ConfigError) as caught:
        load(path)
    assert all(line.isprintable() for line in str(caught.value).splitlines())


KEYS = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
VALUES = st.recursive(
    st.booleans() | st.integers(-1000, 1000) | st.text(st.sampled_from("ab'\"\\\n#[]{}=,é\t"), max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(KEYS, inner, max_size=3)
        | st.lists(st.dictionaries(KEYS, inner, min_size=1, max_size=2), min_size=1, max_size=2)
    ),
    max_leaves=12,
)


@given(st.dictionaries(KEYS, VALUES, max_size=5), st.booleans())
def test_the_line_of_every_value_is_known(tables: dict[str, Any], spread: bool) -> None:
    """Any document, in two ways of writing it, against the lines that its writer noted."""
    writer = TomlWriter(tables, spread=spread)
    assert tomllib.loads(writer.text) == tables
    assert lines_of_values(writer.text) == writer.lines


@given(machine_tables(), st.data())
def test_what_the_walker_lets_pass_loads_and_what_it_refuses_does_not(
    tables: dict[str, Any], data: st.DataObject
) -> None:
    """A sound config with one value replaced by another: never anything but a config or a list of
    mistakes."""
    place: Any = tables
    while isinstance(place, dict | list) and place and (keys := list(_keys(place))):
        key = data.draw(st.sampled_from(keys))
        if isinstance(place[key], dict | list) and place[key] and data.draw(st.booleans()):
            place = place[key]
            continue
        place[key] = data.draw(VALUES)
        break
    with tempfile.TemporaryDirectory() as folder:
        path = config_file(Path(folder), tables)
        document = read(path)
        problems = find_problems(document)
        if problems:
            with pytest.raises(ConfigError):
                load(path)
            assert all(problem.found and problem.allowed for problem in problems)
        else:
            assert isinstance(load(path), MachineConfig)


def _keys(place: dict[str, Any] | list[Any]) -> list[Any]:
    return list(place) if isinstance(place, dict) else list(range(len(place)))


def test_the_checked_in_schema_is_the_one_that_the_code_declares() -> None:
    """If this fails: partvisor schema > configs/partvisor.schema.json"""
    assert json.loads((CONFIGS / "partvisor.schema.json").read_text()) == json_schema()


def test_the_schema_is_a_schema() -> None:
    jsonschema.Draft202012Validator.check_schema(json_schema())


@settings(max_examples=30)
@given(machine_tables())
def test_the_schema_accepts_what_loads(tables: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        config = load(config_file(Path(folder), tables))
    jsonschema.validate(_without_nothing(to_tables(config)), json_schema())


def test_the_schema_and_the_loader_refuse_the_same_plain_mistakes() -> None:
    tables = tomllib.loads(FIVE_MISTAKES)
    refused = {
        tuple(error.absolute_path)
        for error in jsonschema.Draft202012Validator(json_schema()).iter_errors(tables)
    }
    assert ("machine", "memory") in refused
    assert ("partition", 0) in refused  # the unknown key
    assert ("partition", 0, "vps") in refused


def test_every_key_is_documented_under_its_table() -> None:
    """docs/configuration.md has a row for each key of each table, and no other rows."""
    text = (CONFIGS.parent / "docs" / "configuration.md").read_text()
    documented = {
        section.split("\n")[0].strip("[ ]"): set(re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE))
        for section in re.split(r"^##+ ", text, flags=re.MULTILINE)
        if section.startswith("[")
    }
    names = {
        "MachineSettings": "machine",
        "RootConfig": "root",
        "DeviceConfig": "root.device",
        "PartitionConfig": "partition",
        "PartitionDeviceConfig": "partition.device",
        "EmulatedDeviceConfig": "partition.emulated",
        "PartitionFileConfig": "partition.file",
        "PartitionTapConfig": "partition.tap",
    }
    declared = {
        table: set(json_schema()["$defs"][shape]["properties"])
        - ({"device", "emulated", "file"} if table not in ("partition.emulated", "partition.tap") else set())
        for shape, table in names.items()
    }
    assert documented == declared


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.toml")), ids=lambda path: path.name)
def test_every_shipped_config_is_valid_and_names_the_schema(path: Path) -> None:
    problems = [problem for problem in find_problems(read(path)) if "(no such file)" not in problem.found]
    assert problems == []  # a disk that an earlier boot writes may not be there yet
    assert path.read_text().startswith("#:schema ./partvisor.schema.json\n")
    jsonschema.validate(tomllib.loads(path.read_text()), json_schema())


def _without_nothing(value: Any) -> Any:
    """TOML has no null: what is None in a config is left out of a file."""
    if isinstance(value, dict):
        return {key: _without_nothing(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_without_nothing(item) for item in value]
    return value
