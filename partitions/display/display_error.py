"""What a peer of the three devices can do wrong."""

from bus.packets import PacketError


class DisplayError(PacketError):
    """A message that cannot be, or not now. It is counted and dropped; nothing has changed."""
