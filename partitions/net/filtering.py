"""Which frames an adapter is for: by its packet filter."""

from typing import Final

from partitions.net.rndis import PacketFilter

_DIRECTED: Final = int(PacketFilter.DIRECTED | PacketFilter.PROMISCUOUS)
_BROADCAST: Final = int(PacketFilter.BROADCAST | PacketFilter.PROMISCUOUS)
_MULTICAST: Final = int(PacketFilter.MULTICAST | PacketFilter.ALL_MULTICAST | PacketFilter.PROMISCUOUS)
_PROMISCUOUS: Final = int(PacketFilter.PROMISCUOUS)
_BROADCAST_ADDRESS: Final = b"\xff" * 6


def accepts(packet_filter: int, mac: bytes, address: bytes) -> bool:
    """Whether frames to `address` are for an adapter whose own address is `mac`."""
    if address == mac:
        return bool(packet_filter & _DIRECTED)
    if address == _BROADCAST_ADDRESS:
        return bool(packet_filter & _BROADCAST)
    return bool(packet_filter & (_MULTICAST if address[0] & 1 else _PROMISCUOUS))
