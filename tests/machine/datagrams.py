"""A guest with an adapter and no TCP/IP. It says nothing of itself until somebody of the host has sent it a datagram by
a forwarded port; then it asks who the gateway is, sends a datagram there, and reports what comes back."""

import struct
import time
from typing import Any, Final

ADDRESS: Final = bytes((10, 0, 2, 15))
GATEWAY: Final = bytes((10, 0, 2, 2))
OWN_PORT: Final = 7000  # that a forward leads to
_ARP, _IPV4, _UDP = b"\x08\x06", b"\x08\x00", 17
_ABOUT_ETHERNET: Final = b"\x00\x01\x08\x00\x06\x04"
_ASKS, _ANSWERS = b"\x00\x01", b"\x00\x02"
_AGAIN_S: Final = 0.2


def _asking(mac: bytes) -> bytes:
    """Who has the gateway's address?"""
    return b"\xff" * 6 + mac + _ARP + _ABOUT_ETHERNET + _ASKS + mac + ADDRESS + bytes(6) + GATEWAY


def _checksum(data: bytes) -> int:
    total: int = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def _datagram(source: bytes, target: bytes, port: int, data: bytes) -> bytes:
    """From us to the gateway; without a checksum of its own, as UDP allows."""
    udp = struct.pack(">HHHH", OWN_PORT, port, 8 + len(data), 0) + data
    head = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(udp), 1, 0, 64, _UDP, 0) + ADDRESS + GATEWAY
    return target + source + _IPV4 + head[:10] + struct.pack(">H", _checksum(head)) + head[12:] + udp


def main(partition: Any) -> None:
    """Goes on until it is ended."""
    gateway, heard, answered, due, port = b"", False, False, 0.0, partition.args["port"]
    with partition.open_net("net0") as nic:
        partition.report("listening")
        while True:
            if heard and not answered and time.monotonic() > due:
                due = time.monotonic() + _AGAIN_S
                question = _datagram(nic.mac, gateway, port, b"hello") if gateway else _asking(nic.mac)
                nic.send([question], 1)
            for frame in nic.receive(64, _AGAIN_S):
                kind, operation = frame[12:14], frame[20:22]
                if kind == _ARP and operation == _ANSWERS and frame[28:32] == GATEWAY:
                    gateway, due = frame[6:12], 0.0
                elif kind == _ARP and operation == _ASKS and frame[38:42] == ADDRESS:
                    said = _ABOUT_ETHERNET + _ANSWERS + nic.mac + ADDRESS + frame[22:32]
                    nic.send([frame[6:12] + nic.mac + _ARP + said], 1)
                elif kind == _IPV4 and frame[23] == _UDP and frame[36:38] == OWN_PORT.to_bytes(2, "big"):
                    data = frame[42 : 34 + int.from_bytes(frame[38:40], "big")].decode()
                    if data == "HELLO" and not answered:
                        answered = True
                        partition.report("answered", said=data)
                    elif data != "HELLO" and not heard:
                        heard = True
                        partition.report("heard", said=data)
