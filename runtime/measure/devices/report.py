"""What `partvisor bench devices` says, as rows of tables."""

from collections.abc import Sequence
from typing import Any

from runtime.measure.devices.flow_split import Side
from runtime.measure.devices.paths import Place
from runtime.measure.devices.row import Row


def figure_rows(rows: Sequence[Row]) -> list[dict[str, Any]]:
    found = []
    for row in rows:
        plain = row.to_json()
        if row.unmeasured is not None:
            text = f"{row.operation.text}: not measured: {row.unmeasured}"
            found.append({"device": row.operation.device, "operation": text})
            continue
        found.append(
            {
                name: plain[name]
                for name in ("device", "operation", "p50_us", "p99_us", "per_second", "gb_per_s")
            }
            | {f"cpu_us_{name}": plain["cpu_us"][name] for name in plain["cpu_us"]}
            | {"goal": _goal_text(row)}
        )
    return found


def _goal_text(row: Row) -> str | None:
    wanted = row.operation.at_least_gb_per_s
    return None if wanted is None else f">= {wanted:g} GB/s: {'met' if row.is_met else 'MISSED'}"


def peer_rows(rows: Sequence[Row]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for row in rows:
        for peer in row.to_json().get("peers", ()):
            head = {"device": row.operation.device, "operation": row.operation.text, "peer": peer["peer"]}
            if "missing" in peer:
                found.append(head | {"ratio": f"not measured: {peer['missing']}"})
                continue
            interval = next(row.ratio(each) for each in row.peers if each.kind.value == peer["peer"])
            shown = {name: peer[name] for name in ("p50_us", "per_second", "cpu_us")}
            found.append(head | shown | {"ratio": f"{peer['of']} x {interval.text()}"})
    return found


def split_rows(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Shares of the whole; with what is unaccounted they are 100 %."""
    found = []
    for row in rows:
        if (split := row.split) is None:
            continue
        parts = {
            place.value: _percent(split.share(split.parts[place])) if place in split.parts else None
            for place in Place
        }
        found.append(
            {
                "device": row.operation.device,
                "operation": row.operation.text,
                "traced": split.operations,
                "incomplete": split.incomplete,
                "whole_us": split.whole_ns / 1e3,
            }
            | parts
            | {"unaccounted": f"{split.share(split.unaccounted_ns):+.1%}"}
        )
    return found


def flow_rows(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Shares of the processor time of all sides; they are 100 %."""
    found: list[dict[str, Any]] = []
    for row in rows:
        if (flow := row.flow) is None:
            continue
        shares = {side.value: _percent(flow.share(side)) if side in flow.cpu_ns else None for side in Side}
        busiest = f"{flow.busiest.value}, {flow.busy(flow.busiest):.0%} of a CPU"
        found.append(
            {
                "device": row.operation.device,
                "operation": row.operation.text,
                "operations": flow.operations,
                "cpu_us": flow.whole_ns / 1e3,
            }
            | shares
            | {"busiest": busiest}
        )
    return found


def _percent(share: float) -> str:
    return f"{share:.1%}"
