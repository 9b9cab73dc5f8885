"""Drivers in a configuration: what is refused before anything starts, where, and with which words."""

from pathlib import Path

import pytest

from runtime.config.document import ConfigError
from runtime.config.loading import load
from runtime.config.program_checks import DRIVER_ARGS_BYTES_MAX

HEAD = '[machine]\nname = "m"\nmemory = "64MiB"\n[[root.device]]\nname = "d"\n'
OURS = 'driver = "partitions.echo.driver:EchoDriver"\n'
CHILD = (
    '[[partition]]\nname = "{name}"\nparent = "{parent}"\n'
    'program = "partitions.guests.idle:main"\nmemory = "{memory}"\n'
)
HAS_IT = '[[partition.device]]\nname = "d"\n'


def config(folder: Path, text: str) -> Path:
    path = folder / "machine.toml"
    path.write_text(HEAD + text)
    return path


@pytest.mark.parametrize(
    "text",
    [
        'kind = "custom"\n' + OURS,
        'kind = "custom"\nsize = "1MiB"\nargs = { a = [1, { b = true }] }\n' + OURS,
        'kind = "disk"\nsize = "1MiB"\n' + OURS,
        'kind = "disk"\n' + OURS,
        'kind = "disk"\npath = "new.img"\nsize = "1MiB"\n' + OURS,
    ],
)
@pytest.mark.parametrize("architecture", ["microkernelized", "hosted"])
def test_a_driver_stands_in_the_place_of_a_backend(text: str, architecture: str, tmp_path: Path) -> None:
    machine = load(config(tmp_path, text), [f"machine.architecture={architecture}"])
    assert machine.device("d").driver == "partitions.echo.driver:EchoDriver"
    assert machine.drivers == (() if architecture == "microkernelized" else ("d",))


@pytest.mark.parametrize(
    ("text", "key", "words"),
    [
        ('kind = "custom"\n', "driver", "needs one"),
        ('kind = "custom"\nbackend = "memory"\n' + OURS, "backend", "none with"),
        ('kind = "disk"\n', "backend", "or a driver"),
        ('kind = "disk"\nbackend = "memory"\nsize = "1MiB"\n' + OURS, "backend", "no backend with a driver"),
        ('kind = "disk"\nbackend = "memory"\nsize = "1MiB"\nargs = { a = 1 }\n', "args", "without a driver"),
        ('kind = "echo"\n' + OURS, "driver", "nothing"),
        ('kind = "custom"\ndriver = "no colon"\n', "driver", "package.module:Class"),
        ('kind = "custom"\ndriver = "no_such_module_at_all:X"\n', "driver", "no such module"),
        ('kind = "custom"\ndriver = "partitions.echo.driver:Ecko"\n', "driver", "EchoDriver"),
        ('kind = "custom"\nargs = { when = 2026-01-01 }\n' + OURS, "args.when", "text"),
        (f'kind = "custom"\nargs = {{ a = "{"x" * DRIVER_ARGS_BYTES_MAX}" }}\n' + OURS, "args", "at most"),
        ('kind = "custom"\npath = "missing"\n' + OURS, "path", "no such file"),
    ],
)
def test_a_mistake_has_its_place_and_its_words(text: str, key: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as refused:
        load(config(tmp_path, text))
    problem = next(one for one in refused.value.problems if one.path_text == f"root.device[0].{key}")
    assert words in problem.text("machine.toml")


def test_a_drivers_pages_are_kept_by_the_root_as_those_of_a_disk(tmp_path: Path) -> None:
    """Beside the guest's 32 MiB there is no room for 48."""
    guest = CHILD.format(name="g", parent="root", memory="32MiB") + HAS_IT
    with pytest.raises(ConfigError) as refused:
        load(config(tmp_path, 'kind = "custom"\nsize = "48MiB"\n' + OURS + guest))
    assert [problem.path_text for problem in refused.value.problems] == ["machine.memory"]
    load(config(tmp_path, 'kind = "custom"\nsize = "16MiB"\n' + OURS + guest))


def test_a_partition_passes_on_its_disks_alone(tmp_path: Path) -> None:
    tree = CHILD.format(name="outer", parent="root", memory="32MiB") + HAS_IT
    tree += CHILD.format(name="inner", parent="outer", memory="4MiB") + HAS_IT
    with pytest.raises(ConfigError) as refused:
        load(config(tmp_path, 'kind = "custom"\n' + OURS + tree))
    assert any("a disk: the root alone offers" in problem.allowed for problem in refused.value.problems)
