"""The program and the process of a partition.

Where a VM's memory would be loaded with a firmware image, a partition of ours is told which Python module to run.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from runtime import codec
from runtime.abi import MODULE_CHARACTERS_MAX, NAME_CHARACTERS_MAX, PROGRAM_BYTES_MAX, HvStatus
from runtime.hypervisor.replies import Refused

_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", re.ASCII)
_MODULE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*", re.ASCII)
_KEYS: Final = {"module", "name", "args"}


class Process(enum.Enum):
    """Of a partition. Only the root's process is replaced, and those of partitions that outlive theirs."""

    NONE = enum.auto()
    STARTING = enum.auto()  # asked for, pid not known yet
    RUNNING = enum.auto()
    ENDED = enum.auto()


@dataclass(frozen=True, slots=True)
class Program:
    """What VP 0 runs. Arguments stay encoded: nobody can change them, and their size is known."""

    module: str
    name: str
    packed_args: bytes

    @classmethod
    def parse(cls, value: Mapping[str, object]) -> Program:
        if not set(value) <= _KEYS:
            raise Refused(HvStatus.INVALID_PARAMETER)
        module, name, args = value.get("module"), value.get("name"), value.get("args", {})
        if not isinstance(module, str) or not isinstance(name, str) or not isinstance(args, dict):
            raise Refused(HvStatus.INVALID_PARAMETER)
        if len(name) > NAME_CHARACTERS_MAX or not _NAME.fullmatch(name):
            raise Refused(HvStatus.INVALID_PARAMETER)
        if len(module) > MODULE_CHARACTERS_MAX or not _MODULE.fullmatch(module):
            raise Refused(HvStatus.INVALID_PARAMETER)
        try:
            packed = codec.encode(args)
            codec.decode(codec.encode([0, {"value": {"args": args}}]))  # as deep as a reply holds it
        except (codec.EncodeError, codec.DecodeError) as error:
            raise Refused(HvStatus.INVALID_PARAMETER) from error
        if len(packed) > PROGRAM_BYTES_MAX:
            raise Refused(HvStatus.INVALID_PARAMETER)
        return cls(module, name, packed)

    @property
    def args(self) -> object:
        return codec.decode(self.packed_args)
