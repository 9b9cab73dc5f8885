"""Hostile hypercalls: every call, with arguments that almost make sense, and now and then with none that do.

Nonsense alone never gets past a hypervisor's first check, so most arguments are numbers that mean something.
"""

import random
from typing import Any, Final

from runtime.abi import PAGE_BYTES, PARTITION_SELF, HypercallCode, MapFlags, PartitionProperty, RegisterName
from runtime.hypercalls.arguments import ARGUMENTS, Argument, Kind

EXTREMES: Final = (0, 1, 15, 63, 64, 2**16 - 1, 2**24, 2**32 - 2, 2**32 - 1, 2**40, 2**63, 2**64 - 1)
JUNK: Final[tuple[Any, ...]] = (None, True, -1, 1.5, "x", b"\xff" * 9, [], {}, [[1, 2, 3]], {"a": [None]})
# A promise to call again would end the attack by itself; a memory access waits for a parent that may not answer.
LEFT_OUT: Final = frozenset({HypercallCode.HEARTBEAT, HypercallCode.ACCESS_MEMORY})
_CODES: Final = [code for code in HypercallCode if code not in LEFT_OUT]
_NEW_PAGES: Final = int(MapFlags.READ | MapFlags.WRITE | MapFlags.ZEROED)
_LIKELY: Final[dict[str, tuple[int, ...]]] = {
    "partition": (PARTITION_SELF, PARTITION_SELF, PARTITION_SELF, 1, 2, 3, 4),
    "source_partition": (PARTITION_SELF, 1, 2, 3),
    "connection_partition": (1, 2, 3),
    "port_partition": (1, 2, 3),
    "pages": (0, 1, 1, 2, 40),
    "flags": (0, 1, 3, _NEW_PAGES, _NEW_PAGES),
    "property": (*(int(code) for code in PartitionProperty), 0, 1, 2),
    "names": tuple(int(name) for name in RegisterName),
    "registers": tuple(int(name) for name in RegisterName),
    "type": (0, 1, 2, 5, 0x11, 0x10001, 0x10002),
    "vector": (3, 0x40, 300),
    "size": (1, 2, 3, 4, 16),
}
_PORTS: Final = 40  # port and connection ids that are tried
_GPFNS: Final = 0x800


def hostile_call(rng: random.Random) -> tuple[HypercallCode, dict[str, Any]]:
    """One call, ready to be sent."""
    code = rng.choice(_CODES)
    args = {
        entry.name: _value(rng, entry)
        for entry in ARGUMENTS[code]
        if rng.random() < (0.99 if entry.required else 0.4)
    }
    if rng.random() < 0.02:
        args[rng.choice(("x", "vtl", "partition"))] = rng.choice(EXTREMES)
    return code, args


def _value(rng: random.Random, entry: Argument) -> Any:
    dice = rng.random()
    if dice < 0.02:
        return rng.choice(JUNK)
    match entry.kind:
        case Kind.UINT:
            return rng.choice(EXTREMES) if dice < 0.1 else _number(rng, entry.name)
        case Kind.BYTES:
            return rng.randbytes(rng.choice((0, 1, 16, 17, 240, 241)))
        case Kind.UINTS:
            return [_number(rng, entry.name) for _ in range(rng.choice((0, 1, 3, 65)))]
        case Kind.PAIRS:
            pair = ("gpfn", "gpfn") if entry.name == "pages" else (entry.name, "value")
            return [[_number(rng, name) for name in pair] for _ in range(rng.choice((0, 1, 3, 65)))]
        case _:
            return {"module": "a.b", "name": rng.choice(("x", "../x")), "args": {"deep": rng.choice(JUNK)}}


def _number(rng: random.Random, name: str) -> int:
    if (likely := _LIKELY.get(name)) is not None:
        return rng.choice(likely)
    if name in ("port", "connection"):
        return rng.randrange(_PORTS)
    if name in ("gpfn", "source_gpfn"):
        return rng.randrange(_GPFNS)
    if name == "gpa":
        return rng.randrange(_GPFNS) * PAGE_BYTES + rng.randrange(PAGE_BYTES)
    return rng.choice((0, 0, 1, 1, 2, 3, 16, 64))
