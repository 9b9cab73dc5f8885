"""Names that commands understand as something else than a configured partition, so that none may have them."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

ROOT: Final = "root"  # partition 1
HYPERVISOR: Final = "hypervisor"

OWNERS: Final[Mapping[str, str]] = MappingProxyType(
    {ROOT: "the root partition's", HYPERVISOR: "the hypervisor's"}
)
