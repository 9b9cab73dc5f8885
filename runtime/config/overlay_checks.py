"""Checks of disks that are written over a read-only base."""

import os
from collections.abc import Mapping
from typing import Any

from runtime.config.devices import BackendKind
from runtime.config.problem import Problem, spell
from runtime.config.toml_lines import Steps


def check(path: Steps, device: Mapping[str, Any]) -> list[Problem]:
    """What an overlay needs, and that nothing else has a base."""
    if "base" not in device or "backend" not in device:  # refused already
        return []
    base, is_overlay = device["base"], device["backend"] is BackendKind.OVERLAY
    if not is_overlay:
        allowed = 'none without backend = "overlay"'
        return [] if base is None else [Problem((*path, "base"), spell(str(base)), allowed)]
    problems = []
    if base is None:
        problems.append(Problem((*path, "base"), "nothing", 'a file, as backend = "overlay" needs one'))
    if device.get("read_only"):
        problems.append(Problem((*path, "read_only"), "true", 'backend = "file" to read the base alone'))
    if "path" in device and device["path"] is None and "size" in device and device["size"] is None:
        wanted = "the base's size, as an overlay without path is in memory; or a path"
        problems.append(Problem((*path, "size"), "nothing", wanted))
    return problems


def check_all(devices: list[tuple[Steps, Mapping[str, Any]]]) -> list[Problem]:
    """Nothing is written below an overlay."""
    written = {
        os.path.realpath(device["path"])
        for _, device in devices
        if device.get("path") is not None and not device.get("read_only")
    }
    return [
        Problem(
            (*path, "base"), spell(str(device["base"])), "a file that no device writes: another one's path"
        )
        for path, device in devices
        if device.get("base") is not None and os.path.realpath(device["base"]) in written
    ]
