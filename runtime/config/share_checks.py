"""Checks of a config's weights, reserves and caps: what is promised must be there."""

import os
from collections.abc import Mapping
from typing import Any, Final

from runtime.abi import WHOLE_PROCESSOR
from runtime.config.problem import Problem, spell
from runtime.config.shares import share_text
from runtime.config.toml_lines import Steps
from runtime.reserved_names import ROOT

CAP_MIN: Final = WHOLE_PROCESSOR // 1000  # less than a millisecond a second: nothing would ever start

Table = Mapping[str, Any]


def check_one(path: Steps, partition: Table) -> list[Problem]:
    reserve, cap = partition.get("reserve"), partition.get("cap")
    problems = []
    if cap is not None and cap < CAP_MIN:
        problems.append(Problem((*path, "cap"), spell(share_text(cap)), 'at least "0.1%"'))
    elif reserve is not None and cap is not None and reserve > cap:
        allowed = f'at most its cap, "{share_text(cap)}"'
        problems.append(Problem((*path, "reserve"), spell(share_text(reserve)), allowed))
    return problems


def check_all(partitions: list[tuple[Steps, Table]]) -> list[Problem]:
    """What a parent's children are promised comes out of what the parent is promised; the root has the processors."""
    problems = []
    promised: dict[str, int] = {ROOT: len(os.sched_getaffinity(0)) * WHOLE_PROCESSOR}
    asked: dict[str, int] = {}
    last: dict[str, tuple[Steps, Table]] = {}
    for path, partition in partitions:
        if not {"name", "parent", "reserve", "vps"} <= partition.keys() or not isinstance(
            partition["vps"], int
        ):
            continue
        total = partition["reserve"] * partition["vps"]
        promised[partition["name"]] = total
        if total:
            asked[partition["parent"]] = asked.get(partition["parent"], 0) + total
            last[partition["parent"]] = path, partition
    for parent, total in asked.items():
        if parent in promised and total > promised[parent]:
            path, partition = last[parent]
            whose = "the processors" if parent == ROOT else f"the reserve of {spell(parent)}"
            found = f"{spell(share_text(partition['reserve']))}, with its siblings {share_text(total)} of one processor"
            allowed = f"at most {share_text(promised[parent])} together, {whose}"
            problems.append(Problem((*path, "reserve"), found, allowed))
    return problems
