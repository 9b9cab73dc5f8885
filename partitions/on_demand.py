"""An object by name: its module is imported when it is first asked for.

So a machine without a network has no code of networks in its root, or in any other process: less to trust, and less
to wait for at a start.
"""

import importlib
from typing import Any


def named(name: str) -> Any:
    """`name`: "package.module:attribute", of our own tables; never what another partition said."""
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(module), attribute)
