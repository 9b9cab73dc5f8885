"""What each partition has had of the processors between two looks at the scheduler's books."""

from collections.abc import Mapping
from typing import Any


def delivered_between(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """Two answers to `sched` as shares of the time between them; percent of one processor unless said otherwise."""
    elapsed_ns = max(after["now_ns"] - before["now_ns"], 1)
    earlier = {row["id"]: row for row in before["partitions"]}
    rows: list[dict[str, Any]] = []
    for row in after["partitions"]:
        if (old := earlier.get(row["id"])) is None:
            continue
        used_ns = _difference(row["cpu_ns"], old["cpu_ns"])
        due_ns = _difference(row["due_ns"], old["due_ns"])
        rows.append(
            {
                **{key: row[key] for key in ("name", "weight", "reserve", "cap", "vps", "cpus")},
                "due_percent": _percent(due_ns, elapsed_ns),
                "used_percent": _percent(used_ns, elapsed_ns),
                "used_ns": used_ns,
                "held": row["held"],
            }
        )
    total = sum(row["used_ns"] or 0 for row in rows)
    for row in rows:
        row["delivered_percent"] = _percent(row["used_ns"], total) if total else None
    return {
        "mechanism": after["mechanism"],
        "note": after["note"],
        "seconds": elapsed_ns / 1e9,
        "broker_percent": _percent(after["broker_cpu_ns"] - before["broker_cpu_ns"], elapsed_ns),
        "partitions": rows,
    }


def _difference(new: int | None, old: int | None) -> int | None:
    return None if new is None or old is None else max(new - old, 0)


def _percent(part: int | None, whole: int) -> float | None:
    return None if part is None else round(100 * part / whole, 2)
