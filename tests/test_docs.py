"""The documentation, held to its word: links lead somewhere, commands parse, programs run, tables are the code's.

A fenced block may carry more than its language:

    ```python name=hello.py      written into the page's own scratch folder, before anything runs
    ```sh run                    run there, in order, by bash; it must exit with 0
    ```text output               each line stands in what the run block before it printed, if digits count as alike

`…` in an output line stands for anything.
"""

import ast
import importlib
import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import click
import msgspec
import pytest

from partitions.storage import sense
from partitions.storage.scsi import Opcode
from runtime.abi import HvStatus, HypercallCode, Privilege
from runtime.cli import cli
from runtime.config.shape import Shape
from runtime.hypercalls.arguments import ARGUMENTS, Argument
from runtime.hypervisor.call_rules import RULES

ROOT: Final = Path(__file__).parent.parent
PAGES: Final = sorted([ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").glob("*.md")])
RUN_S_MAX: Final = 600  # a block that hangs; never a performance claim: one boots six machines in turn
LINE_CHARACTERS_MAX: Final = 125  # 120, and a little where a line would otherwise break badly
_FENCE: Final = re.compile(r"^```([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_LINK: Final = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


@dataclass(frozen=True, slots=True)
class Block:
    """One fenced block: "sh run" and what stands in it."""

    tag: str
    text: str

    @property
    def file_name(self) -> str | None:
        words = [word.removeprefix("name=") for word in self.tag.split() if word.startswith("name=")]
        return words[0] if words else None


def blocks(page: Path) -> list[Block]:
    return [Block(tag.strip(), text) for tag, text in _FENCE.findall(page.read_text())]


def page_id(page: Path) -> str:
    return str(page.relative_to(ROOT))


every_page = pytest.mark.parametrize("page", PAGES, ids=page_id)


# -- links, lines and commands -------------------------------------------------------------------------------


def anchors(page: Path) -> set[str]:
    """Of a page's headings, as they are made from their text."""
    titles = re.findall(r"^#+ (.+)$", _FENCE.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@every_page
def test_every_link_leads_somewhere(page: Path) -> None:
    for link in _LINK.findall(_FENCE.sub("", page.read_text())):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@every_page
def test_lines_are_short_enough_to_read(page: Path) -> None:
    prose = _FENCE.sub("", page.read_text())
    long = [line for line in prose.splitlines() if len(line) > LINE_CHARACTERS_MAX and line[:1] != "|"]
    assert long == []


def shell_commands(page: Path) -> list[list[str]]:
    """Calls of `partvisor` and of our scripts in the page's shell blocks, as words."""
    lines = [
        line for each in blocks(page) if each.tag.split()[:1] == ["sh"] for line in each.text.splitlines()
    ]
    pieces = [piece.strip() for line in lines for piece in re.split(r"[|;&()]+|\d?>", line.split(" #")[0])]
    return [shlex.split(piece) for piece in pieces if re.match(r"(partvisor|scripts/\w+)\b", piece)]


def mentioned_commands(page: Path) -> list[list[str]]:
    """The same in code spans, where an option may stand without its value."""
    spans = re.findall(r"`([^`\n]+)`", _FENCE.sub("", page.read_text()))
    return [span.split() for span in spans if re.match(r"(partvisor [a-z]|scripts/\w+)", span)]


def subcommand(words: list[str]) -> tuple[click.Command, list[str]]:
    """The innermost command that the words name, and the words behind it."""
    found: click.Command = cli
    rest = words[1:]
    while rest and isinstance(found, click.Group) and (found is cli or rest[0] in found.commands):
        inner = found.commands.get(rest[0])
        assert inner is not None, f"no such command: {words}"
        found, rest = inner, rest[1:]
    return found, rest


@every_page
def test_every_command_of_ours_parses(page: Path) -> None:
    """Nothing runs here: names and options are looked up, and shell lines are parsed as they would be."""
    for words in [*shell_commands(page), *mentioned_commands(page)]:
        if words[0] != "partvisor":
            assert (ROOT / words[0]).is_file(), words
            assert os.access(ROOT / words[0], os.X_OK) or words[0].endswith(".py"), words
    for words in shell_commands(page):
        if words[0] == "partvisor" and words[1:] != ["--help"]:
            try:
                command, rest = subcommand(words)
                command.make_context(words[1], rest)
            except click.exceptions.Exit:  # --help
                pass
            except click.UsageError as error:
                pytest.fail(f"{words}: {error.format_message()}")
    for words in mentioned_commands(page):
        if words[0] == "partvisor":
            options = [
                option
                for each in subcommand(words)[0].params
                for option in [*each.opts, *each.secondary_opts]
            ]
            assert {word for word in words[2:] if word[:1] == "-"} <= {*options, "--help"}, words


def test_the_readme_leads_to_every_command_and_every_page() -> None:
    readme = ROOT / "README.md"
    assert set(cli.commands) <= {words[1] for words in mentioned_commands(readme) if words[0] == "partvisor"}
    linked = {(readme.parent / link).resolve() for link in _LINK.findall(readme.read_text())}
    assert set(PAGES) - {readme} <= linked


# -- programs ------------------------------------------------------------------------------------------------


def alike(line: str) -> str:
    """A line without what differs from run to run."""
    return re.sub(r"\s+", " ", re.sub(r"\d+", "0", line)).strip()


def is_printed(expected: str, printed: list[str]) -> bool:
    pattern = re.compile(".*".join(re.escape(part.strip()) for part in alike(expected).split("…")))
    return any(pattern.fullmatch(line) for line in printed)


RUNNABLE: Final = [page for page in PAGES if any("run" in block.tag.split() for block in blocks(page))]


@pytest.mark.machine
@pytest.mark.parametrize("page", RUNNABLE, ids=page_id)
def test_the_pages_programs_do_what_the_page_says(page: Path, tmp_path: Path, runtime_dir: Path) -> None:
    folder = tmp_path / "page"
    folder.mkdir()
    tools = tmp_path / "bin"
    tools.mkdir()
    for name, words in {"python": "", "partvisor": "-m runtime.cli"}.items():
        (tools / name).write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {words} "$@"\n')
        (tools / name).chmod(0o755)
    environment = os.environ | {
        "PATH": f"{tools}:{os.environ['PATH']}",
        "PYTHONPATH": f"{folder}:{ROOT}",
        "PARTVISOR_RUNTIME_DIR": str(runtime_dir),
    }

    def run(script: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", "-euo", "pipefail", "-c", script],
            cwd=folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=RUN_S_MAX,
            check=False,
        )

    every = blocks(page)
    for block in every:
        if block.file_name is not None:
            (folder / block.file_name).write_text(block.text)
    printed: list[str] = []
    try:
        for block in every:
            if block.tag == "sh run":
                done = run(block.text)
                assert done.returncode == 0, f"{block.text}\n{done.stdout}"
                printed = [alike(line) for line in done.stdout.splitlines()]
            elif block.tag == "text output":
                missing = [
                    line for line in block.text.splitlines() if line.strip() and not is_printed(line, printed)
                ]
                assert missing == [], "\n".join(printed)
    finally:
        run("while partvisor stop 2>/dev/null; do :; done")
    assert not runtime_dir.exists()  # no machine, no socket, no folder


# -- tables --------------------------------------------------------------------------------------------------


def table_rows(page: str) -> list[list[str]]:
    """Cells of every table row of a page, without code marks."""
    lines = _FENCE.sub("", (ROOT / "docs" / page).read_text()).splitlines()
    return [
        [cell.strip().replace("`", "") for cell in line.strip("|").split("|")]
        for line in lines
        if line[:1] == "|"
    ]


def argument_text(argument: Argument) -> str:
    return argument.name if argument.required else f"{argument.name}?"


def privilege_text(needed: Privilege | None) -> str:
    if needed is None:
        return "never"
    return (needed.name or "any") if needed else "free"


def test_every_hypercall_stands_in_the_table_as_the_code_has_it() -> None:
    rows = {row[1]: row for row in table_rows("hypercalls.md") if row[0].startswith("0x")}
    assert list(rows) == [code.name for code in HypercallCode]
    for code in HypercallCode:
        arguments = ", ".join(argument_text(argument) for argument in ARGUMENTS[code]) or "—"
        assert rows[code.name][:3] == [f"0x{code:02X}", code.name, arguments]


def test_every_rule_stands_in_the_table_as_the_code_has_it() -> None:
    names = {code.name for code in HypercallCode}
    rows = {row[0]: row[1:] for row in table_rows("hypercalls.md") if row[0] in names}
    assert set(rows) == names
    tests = "\n".join(path.read_text() for path in (ROOT / "tests" / "runtime").glob("test_*.py"))
    for code, rule in RULES.items():
        on_self, on_child, on_deeper, refused, test = rows[code.name]
        wanted = [privilege_text(needed) for needed in (rule.on_self, rule.on_child, rule.on_deeper)]
        if not any(argument.name == "partition" for argument in ARGUMENTS[code]):
            wanted[1:] = ["—", "—"]  # it names no target
        assert [on_self, on_child, on_deeper] == wanted, code.name
        assert {word for word in re.split(r", ", refused) if word != "—"} <= set(HvStatus.__members__), (
            code.name
        )
        assert test == "—" or f"def {test}(" in tests, code.name


def test_the_hypervisors_files_stand_in_the_table() -> None:
    page = (ROOT / "docs/hypervisor.md").read_text()
    listed = re.findall(r"`(\w+)`", page.split("\n## Its files\n")[1].split("\n## ")[0])
    files = {path.stem for path in (ROOT / "runtime/hypervisor").glob("*.py")} - {"__init__"}
    assert sorted(listed) == sorted(files)


def test_every_key_of_a_configuration_stands_in_the_tables() -> None:
    rows = {row[0] for row in table_rows("configuration.md")}
    arrays = {
        "device",
        "emulated",
        "partition",
        "file",
        "machine",
        "root",
    }  # tables with a section of their own
    for shape in Shape.__subclasses__():
        assert {field.encode_name for field in msgspec.structs.fields(shape)} - arrays <= rows, shape


def test_every_scsi_command_and_every_sense_stands_in_the_tables() -> None:
    rows = table_rows("storage.md")
    for opcode in Opcode:
        assert any(row[0] == f"0x{opcode:02X}" and opcode.name in row[1] for row in rows), opcode
    for name, value in vars(sense).items():
        if isinstance(value, sense.Sense) and value != sense.NO_SENSE:
            assert any(str(value) in cell for row in rows for cell in row), name


def c_constant(path: Path, name: str) -> int:
    found = re.search(rf"^#define {name} \(?([0-9A-Fa-fx]+)u?\b", path.read_text(), re.MULTILINE)
    assert found is not None, f"{path}: {name}"
    return int(found[1], 0)


def test_every_limit_has_the_value_that_the_table_says() -> None:
    """Rows: what | where:NAME | value, or an expression of numbers | what happens beyond it."""
    rows = [row for row in table_rows("limits.md") if len(row) == 4 and re.fullmatch(r"[\w./]+:\w+", row[1])]
    assert rows
    for _, where, text, _ in rows:
        place, name = where.split(":")
        path = ROOT / place
        if path.suffix == ".h":
            value: object = c_constant(path, name)
        else:
            value = getattr(importlib.import_module(place.removesuffix(".py").replace("/", ".")), name)
        assert value == number(text), where


def number(text: str) -> float:
    """ "4 MiB", "30 s", "2^22", "4,096" as the unit that the constant has: bytes, or what stands there."""
    scale = {"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}
    digits, _, unit = text.replace(",", "").partition(" ")
    base, _, power = digits.partition("^")
    value = int(base) ** int(power) if power else ast.literal_eval(base)
    assert isinstance(value, int | float)
    return value * scale.get(unit, 1)
