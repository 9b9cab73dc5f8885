"""A configuration that runs in another folder than its own: what it writes is made there, what it reads stays."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any


def give_own_files(partition: Mapping[str, Any], started_from: Path, folder: Path) -> None:
    """To one [[partition]] table, changed in place. `started_from`: what its paths are relative to."""
    for file in partition.get("file", []):
        if file.get("mode", "read") == "read":
            file["path"] = str(started_from / file["path"])
            continue
        path = folder / f"{partition['name']}.{file['name']}"
        file["path"] = str(path)
        path.touch()
