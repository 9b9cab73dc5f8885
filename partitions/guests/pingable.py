"""A host with one address that answers ARP and ping, for real programs to find. Args: device, address, seconds."""

import socket
import struct
import time
from typing import Final

from partitions.child import Partition

_ARP, _IPV4 = b"\x08\x06", b"\x08\x00"
_ARP_FORM: Final = struct.Struct(">HHBBH6s4s6s4s")
_ASK, _ANSWER = 1, 2
_ICMP, _ECHO = 1, 8
_HEADER_BYTES: Final = 14
_LOOK_S: Final = 0.2  # how often it looks at its link


def main(partition: Partition) -> int:
    args = partition.args
    address, until = socket.inet_aton(args["address"]), time.monotonic() + float(args.get("seconds", 3600))
    with partition.open_net(str(args["device"])) as nic:
        partition.report("pingable", address=args["address"], mac=nic.mac.hex(":"))
        answered, link_up = 0, nic.link_up
        while time.monotonic() < until:
            replies = [
                reply
                for frame in nic.receive(256, _LOOK_S)
                if (reply := answer(frame, nic.mac, address)) is not None
            ]
            answered += nic.send(replies, 1)
            if nic.link_up != link_up:
                link_up = nic.link_up
                partition.report("link", up=link_up)
        partition.report("pinged", answered=answered)
    return 0


def answer(frame: bytes, mac: bytes, address: bytes) -> bytes | None:
    """The reply to a frame; None: it is not for us, or none is due."""
    packet: bytes
    kind, packet = frame[12:_HEADER_BYTES], frame[_HEADER_BYTES:]
    if kind == _ARP and len(packet) >= _ARP_FORM.size:
        *types, operation, asker, asking, _, asked = _ARP_FORM.unpack_from(packet)
        if operation != _ASK or asked != address:
            return None
        return b"".join((asker, mac, _ARP, _ARP_FORM.pack(*types, _ANSWER, mac, address, asker, asking)))
    if kind != _IPV4 or len(packet) < 28 or packet[9] != _ICMP or packet[16:20] != address:
        return None
    header_bytes, length = (packet[0] & 0xF) * 4, int.from_bytes(packet[2:4], "big")
    if not 20 <= header_bytes <= length - 8 or length > len(packet) or packet[header_bytes] != _ECHO:
        return None
    if checksum(packet[:header_bytes]) or checksum(packet[header_bytes:length]):
        return None  # it was damaged on the way
    header = bytearray(packet[:header_bytes])
    header[10:12], header[12:16], header[16:20] = b"\0\0", address, packet[12:16]
    header[10:12] = checksum(header).to_bytes(2, "big")
    echo = bytearray(packet[header_bytes:length])
    echo[0:1], echo[2:4] = b"\0", b"\0\0"
    echo[2:4] = checksum(echo).to_bytes(2, "big")
    return frame[6:12] + mac + _IPV4 + header + echo


def checksum(data: bytes | bytearray) -> int:
    """Of the Internet; 0 over what carries its own."""
    padded = bytes(data) + bytes(len(data) % 2)
    total: int = sum(struct.unpack(f">{len(padded) // 2}H", padded))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
