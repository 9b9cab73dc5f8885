"""From a config file to the typed config of a machine (runtime.config.model), checked as a whole."""

from collections.abc import Sequence
from pathlib import Path

import msgspec

from runtime.config.document import ConfigError, Document, read
from runtime.config.model import MachineConfig, decode_value
from runtime.config.validate import find_problems


def load(path: Path | str, overrides: Sequence[str] = ()) -> MachineConfig:
    """Load a config file.

    Args:
        path: of the TOML file; relative paths inside it start at its folder.
        overrides: "partition.writer.args.count=3", as given to `partvisor run --set`. A path in an override
            starts at the current directory, as anywhere else in a shell.

    Raises:
        ConfigError: with every mistake in the file. Nothing was created or opened for writing.
    """
    document = read(path, overrides)
    if problems := find_problems(document):
        raise ConfigError(document.source, problems)
    return convert(document)


def convert(document: Document) -> MachineConfig:
    """The typed config of a document in which no problem was found."""
    return msgspec.convert(
        document.tables,
        MachineConfig,
        dec_hook=lambda kind, value: decode_value(kind, value, document.folder),
    )
