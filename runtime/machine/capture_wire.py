"""What travels between who has a network's switch and who captures it: one SEQPACKET socket for each capture.

    client -> platform   {name, port, snap_bytes} in JSON; the platform hands the very socket on to the root, and that,
                         where another process has the switch, to its driver
    switch -> client     {ok: true, network} or {ok: false, status, message} in JSON
    switch -> client     [u64 dropped so far] + records, each as a pcap file has it: as often as frames come
    client -> switch     the end of its stream: enough. It is answered by a packet without records, and closed

So the client writes records into its file as they are, and nobody in the machine opens a path. A socket that is
full costs records, which are counted, and nobody's time.
"""

import struct
from typing import Final

PACKET_HEAD: Final = struct.Struct("<Q")
RECORD_HEAD: Final = struct.Struct("<IIII")  # seconds, nanoseconds, bytes that follow, bytes that there were
FILE_HEAD: Final = struct.Struct("<IHHiIII")  # magic, 2, 4, 0, 0, snap length, link type
MAGIC_NANOSECONDS: Final = 0xA1B2_3C4D
LINK_ETHERNET: Final = 1
SNAP_BYTES_MAX: Final = 65_535  # of one frame; there are none that are longer
RECORDS_BYTES_MAX: Final = 96 << 10  # of one packet: what a socket takes with its usual buffer
HELLO_BYTES_MAX: Final = 4096
PACKET_BYTES_MAX: Final = PACKET_HEAD.size + RECORDS_BYTES_MAX

assert RECORD_HEAD.size == 16
assert FILE_HEAD.size == 24
assert RECORD_HEAD.size + SNAP_BYTES_MAX <= RECORDS_BYTES_MAX


def file_head(snap_bytes: int) -> bytes:
    return FILE_HEAD.pack(MAGIC_NANOSECONDS, 2, 4, 0, 0, snap_bytes, LINK_ETHERNET)
