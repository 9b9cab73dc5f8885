"""`partvisor new`: the beginning of something of one's own, written as files."""

import re
from pathlib import Path
from typing import Final

import click

from runtime.exits import CommandError, ExitCode
from runtime.reports import print_json

NAME_PATTERN: Final = "[a-z][a-z0-9_]{0,23}"
_EVERYWHERE: Final = ("microkernelized", "disaggregated", "monolithic", "hosted", "microkernel")
ARCHITECTURES: Final = {  # that a device of the kind can be served in
    "block": _EVERYWHERE,
    "custom": _EVERYWHERE,
    "net": _EVERYWHERE,
    "serial": _EVERYWHERE,
}
KINDS: Final = tuple(ARCHITECTURES)


class NotWritten(CommandError):
    """The name is none, or something is there already. One line; nothing was written."""

    exit_code = ExitCode.USAGE


@click.group()
def new() -> None:
    """Begin something of your own.

    \b
    Example:
      partvisor new driver words
    """


@new.command()
@click.argument("name")
@click.option(
    "--kind", type=click.Choice(KINDS), default="custom", show_default=True, help="The class of its device."
)
@click.option(
    "--folder",
    type=click.Path(path_type=Path),
    default=Path(),
    help="Where the folder NAME is made; else here.",
)
@click.option("--json", "as_json", is_flag=True, help="Print {folder, files} as JSON.")
def driver(name: str, kind: str, folder: Path, as_json: bool) -> int:
    """Write a driver that works: with a guest, a machine and a test, in a folder of its own.

    Nothing that is there already is touched.

    \b
    Example:
      partvisor new driver words --kind custom
      partvisor new driver vault --kind block --folder ~/drivers
    """
    files = write_driver(name, kind, folder / name)
    if as_json:
        print_json({"folder": str(folder / name), "files": files})
        return ExitCode.DONE
    print(f"wrote {folder / name}: {', '.join(files)}\nnext:")
    for line in (
        f"cd {folder / name}",
        "export PYTHONPATH=$PWD",
        "partvisor run machine.toml",
        "partvisor run machine.toml --architecture disaggregated",
        f"python test_{name}.py -v",
    ):
        print(f"  {line}")
    return ExitCode.DONE


def write_driver(name: str, kind: str, folder: Path) -> list[str]:
    """The names of the files in `folder`, which is made. NotWritten."""
    from importlib.resources import files as resources

    if re.fullmatch(NAME_PATTERN, name) is None:
        raise NotWritten(
            f"{name!r} is no name of a module: 1 to 24 of a-z, 0-9 and _, the first one a letter"
        )
    values = {
        "NAME": name,
        "CLASS": "".join(word.capitalize() for word in name.split("_")),
        "KIND": kind,
        "TESTS": "\n\n".join(map(_test_under, ARCHITECTURES[kind])),
    }
    names = {
        f"{name}.py": (kind, "driver.py"),
        f"{name}_guest.py": (kind, "guest.py"),
        "machine.toml": (kind, "machine.toml"),
        f"test_{name}.py": ("common", "test.py"),
        "README.md": ("common", "README.md"),
    }
    templates = resources("runtime.templates")
    texts = {
        file: _filled((templates / where / f"{what}.in").read_text(), values)
        for file, (where, what) in names.items()
    }
    try:
        folder.mkdir(parents=True)
        for file, text in texts.items():
            (folder / file).write_text(text)
    except FileExistsError as error:
        raise NotWritten(f"{folder} is there already: choose another name, or --folder") from error
    except OSError as error:
        raise NotWritten(f"{folder} cannot be written ({error.strerror}): choose another --folder") from error
    return list(texts)


def _test_under(architecture: str) -> str:
    """A method each, so that one can be chosen by its name, and each is told as it ends."""
    return f'    def test_{architecture}(self) -> None:\n        self.boot("{architecture}")'


def _filled(text: str, values: dict[str, str]) -> str:
    return re.sub(r"@([A-Z]+)@", lambda found: values[found[1]], text)
