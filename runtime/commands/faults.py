"""`partvisor faults`, `inject`, `heal`, `injected`: break a machine that runs, by hand."""

from __future__ import annotations

import random
import time
from typing import TYPE_CHECKING, Any, Final

import click

from runtime.commands.machines import _client, _machine_option
from runtime.commands.shared_options import json_option
from runtime.exits import ExitCode
from runtime.reports import print_json, print_table

if TYPE_CHECKING:
    from runtime.chaos.faults.kinds import FaultKind, Value

_SEED_BITS: Final = 32


@click.command()
@click.argument("name", required=False)
@json_option
def faults(name: str | None, as_json: bool) -> int:
    """List what can be broken, where, and with which parameters; of NAME alone, more of it.

    \b
    Example:
      partvisor faults
      partvisor faults storage-error
    """
    from runtime.chaos.faults.catalogue import FAULTS

    if name is not None:
        kind = _kind(name)
        if as_json:
            print_json(kind.to_table())
        else:
            _describe(kind)
        return ExitCode.DONE
    if as_json:
        print_json({"faults": [kind.to_table() for kind in FAULTS.values()]})
        return ExitCode.DONE
    rows = [
        {
            "fault": kind.name,
            "group": kind.group.value,
            "what happens": kind.summary,
            "parameters": " ".join(f"{p.name}={_text(p.default)}" for p in kind.parameters) or "-",
            "needs": ", ".join(kind.needs) or "-",
        }
        for kind in FAULTS.values()
    ]
    print_table(rows, "there is nothing that could be broken")
    return ExitCode.DONE


@click.command()
@click.argument("target")
@click.argument("fault")
@click.argument("parameters", nargs=-1, metavar="[NAME=VALUE]...")
@click.option("--probability", type=float, default=100.0, help="Percent of the passes of its seam.")
@click.option("--interval", type=int, default=1, help="Only every N-th pass.")
@click.option("--times", type=int, default=-1, help="At most so often; -1: no end.")
@click.option("--space", type=int, default=0, help="So many passes go by first.")
@click.option("--seed", type=int, default=None, help="For its chances; left out: drawn, and printed.")
@click.option("--for", "seconds", type=click.FloatRange(0, 86_400), help="Heal it after so many seconds.")
@_machine_option
@json_option
def inject(
    target: str,
    fault: str,
    parameters: tuple[str, ...],
    probability: float,
    interval: int,
    times: int,
    space: int,
    seed: int | None,
    seconds: float | None,
    machine: str | None,
    as_json: bool,
) -> int:
    """Break TARGET, a partition or a device of a running machine, by FAULT. `partvisor faults` lists them.

    It stays armed until `partvisor heal`, or for as long as --for says; Ctrl-C then heals it at once.

    \b
    Example:
      partvisor inject root stop --for 2
      partvisor inject disk0 storage-error --probability 10 --times 5
    """
    from runtime.chaos.faults.kinds import ParameterError
    from runtime.chaos.faults.knobs import KnobError, Knobs
    from runtime.chaos.faults.orders import Order

    kind = _kind(fault)
    seed = random.getrandbits(_SEED_BITS) if seed is None else seed
    try:
        settled = kind.settle(_parsed(kind, parameters))
        order = Order(0, kind.name, target, settled, Knobs(probability, interval, times, space), seed)
    except (ParameterError, KnobError) as error:
        raise click.UsageError(str(error)) from None
    with _client(machine) as client:
        number = client.request("inject", order=order.to_table())["number"]
        if as_json:
            print_json({"number": number, "seed": seed})
        else:
            print(f"fault {number}: {kind.name} of {target} is armed (seed {seed}); partvisor heal {number}")
        if seconds is not None:
            try:
                time.sleep(seconds)
            finally:
                client.request("heal", number=number)
            if not as_json:
                print(f"fault {number} is healed")
    return ExitCode.DONE


@click.command()
@click.argument("number", type=click.IntRange(min=1), required=False)
@_machine_option
def heal(number: int | None, machine: str | None) -> int:
    """Undo one fault, or all.

    \b
    Example:
      partvisor heal
    """
    with _client(machine) as client:
        client.request("heal", number=number or 0)
    print("every fault is healed" if number is None else f"fault {number} is healed")
    return ExitCode.DONE


@click.command()
@_machine_option
@json_option
def injected(machine: str | None, as_json: bool) -> int:
    """List the faults that are armed, and how often each has struck.

    \b
    Example:
      partvisor injected
    """
    with _client(machine) as client:
        rows: list[dict[str, Any]] = client.request("injected")["injected"]
    if as_json:
        print_json({"injected": rows})
        return ExitCode.DONE
    print_table(
        [
            {
                "number": row["order"]["number"],
                "fault": row["order"]["kind"],
                "target": row["order"]["target"],
                "parameters": " ".join(f"{name}={_text(v)}" for name, v in row["order"]["parameters"].items())
                or "-",
                "passes": row["passes"],
                "fired": row["fired"],
            }
            for row in rows
        ],
        "no fault is armed",
    )
    return ExitCode.DONE


def _kind(name: str) -> FaultKind:
    import difflib

    from runtime.chaos.faults.catalogue import FAULTS

    if name not in FAULTS:
        close = difflib.get_close_matches(name, FAULTS, 1)
        hint = f"; did you mean {close[0]}?" if close else "; see: partvisor faults"
        raise click.UsageError(f"no fault is named {name}{hint}")
    return FAULTS[name]


def _parsed(kind: FaultKind, texts: tuple[str, ...]) -> dict[str, Value]:
    known = {parameter.name: parameter for parameter in kind.parameters}
    parsed: dict[str, Value] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or name not in known:
            raise click.UsageError(f"{text}: want {' '.join(f'{n}=VALUE' for n in known) or 'no parameters'}")
        parsed[name] = known[name].parse(value)
    return parsed


def _describe(kind: FaultKind) -> None:
    print(f"{kind.name}: {kind.summary}")
    print(f"  group    {kind.group}")
    print(f"  seam     {kind.seam}")
    print(f"  carrier  {kind.carrier}")
    print(f"  needs    {', '.join(kind.needs) or 'nothing'}")
    for parameter in kind.parameters:
        meaning = f", {parameter.meaning}" if parameter.meaning else ""
        print(f"  {parameter.name} = {_text(parameter.default)}: {parameter.allowed}{meaning}")


def _text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
