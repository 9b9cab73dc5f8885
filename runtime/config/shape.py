"""What every table of a config file has in common: names, patterns, and that an unknown key is an error."""

from typing import Annotated, Final

import msgspec
from msgspec import Meta

NAME_PATTERN: Final = "^[a-z0-9][a-z0-9_-]{0,31}$"
PROGRAM_PATTERN: Final = "^[A-Za-z_][A-Za-z0-9_]*([.][A-Za-z_][A-Za-z0-9_]*)*:[A-Za-z_][A-Za-z0-9_]*$"
DRIVER_PATTERN: Final = "^[A-Za-z_][A-Za-z0-9_]*([.][A-Za-z_][A-Za-z0-9_]*)*:[A-Za-z_][A-Z_a-z0-9]*$"

PATTERN_MEANINGS: Final = {  # an error says these words; the regular expressions are for editors
    NAME_PATTERN: "1 to 32 of a-z, 0-9, '-' and '_', the first one a letter or digit",
    PROGRAM_PATTERN: "a function as 'package.module:function'",
    DRIVER_PATTERN: "a class as 'package.module:Class'",
}

Name = Annotated[str, Meta(pattern=NAME_PATTERN)]
DriverName = Annotated[str, Meta(pattern=DRIVER_PATTERN, max_length=255)]


class Shape(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One table of the file. An unknown key is an error, with its path."""
