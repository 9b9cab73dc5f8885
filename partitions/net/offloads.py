"""Offloads, as a guest asks for them: there are none, and it is told so in the form that it wants to hear it in.

Linux asks what the adapter can do before anything else, and gives an adapter up that does not know the question; then
it switches off what there is not, and gives it up if that is refused.

Sources: Linux drivers/net/hyperv/hyperv_net.h (ndis_offload, ndis_offload_params), rndis_filter.c.
"""

import struct
from typing import Final

from partitions.net.rndis import Status

_HEAD: Final = struct.Struct("<BBH")  # type, revision, size: with this head
_TYPE_OFFLOAD: Final = 0xA7
_TYPE_DEFAULT: Final = 0x80
_REVISION: Final = 1
# Checksums (8), large sends (4), IPsec (7), large sends of the second kind (7), flags. 0: it can't.
_ABILITIES: Final = struct.Struct("<27I")
CAPABILITIES: Final = _HEAD.pack(_TYPE_OFFLOAD, _REVISION, _HEAD.size + _ABILITIES.size) + bytes(
    _ABILITIES.size
)

# What is to be switched: at 4 checksums of IPv4, of TCP and UDP over it, of TCP and UDP over IPv6; large sends, IPsec;
# large sends over IPv4, over IPv6; connections over each; at 16 flags; since NDIS 6.1 at 20 IPsec, twice; since 6.30
# at 22 coalescing over IPv4, over IPv6, at 24 encapsulation, and which.
_SWITCHES: Final = (*range(4, 15), *range(20, 24))
_ENCAPSULATION_AT: Final = 24
_PARAMETERS_BYTES_MIN: Final = 20  # of NDIS 6.0
_NO_CHANGE, _OFF = 0, 1
_ENCAPSULATION_OFF: Final = 2

assert len(CAPABILITIES) == 112  # revision 1


def switched(parameters: bytes) -> Status:
    """How a guest's wish is answered. Nothing changes: what is off may be switched off, and nothing else."""
    if len(parameters) < _PARAMETERS_BYTES_MIN:
        return Status.INVALID_LENGTH
    kind, revision, size = _HEAD.unpack_from(parameters)
    if kind != _TYPE_DEFAULT or revision < _REVISION:
        return Status.INVALID_DATA
    if not _PARAMETERS_BYTES_MIN <= size <= len(parameters):
        return Status.INVALID_LENGTH
    wanted = parameters[:size]
    if any(wanted[at] not in (_NO_CHANGE, _OFF) for at in _SWITCHES if at < size):
        return Status.NOT_SUPPORTED
    if size > _ENCAPSULATION_AT and wanted[_ENCAPSULATION_AT] not in (_NO_CHANGE, _ENCAPSULATION_OFF):
        return Status.NOT_SUPPORTED
    return Status.SUCCESS
