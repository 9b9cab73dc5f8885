"""A guest's end of a custom device, and who serves the other end in a thread, with a driver of the test's."""

import mmap
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from bus.memory import PAGE_BYTES
from bus.native import Channel, GpaMap, RingCorrupt
from bus.seam import Seam
from partitions.custom.client import RingCustom
from partitions.custom.device import CustomDevice
from partitions.sdk.context import DriverContext
from partitions.sdk.custom import AsyncCustomDriver, CustomDriver
from partitions.stack.served_channel import Service
from tests.bus.ring_pair import ring_pair

DATA_GPFN: Final = 0x2000
DATA_PAGES: Final = 80
CONTEXT: Final = DriverContext("device", "custom", {}, None, 512, False, None, None)


class Server:
    """A VSP that serves one end in a thread, until it is told to stop or the guest breaks the ring."""

    def __init__(self, service: Service) -> None:
        self.vsp, self.stop = service, threading.Event()
        self.broken: RingCorrupt | None = None
        self.failed: BaseException | None = None
        self.thread = threading.Thread(target=self._serve)
        self.thread.start()

    def _serve(self) -> None:
        try:
            self.vsp.serve(self.stop)
        except RingCorrupt as error:
            self.broken = error
        except BaseException as error:
            self.failed = error


class CustomPair:
    def __init__(self, guest: Channel, host: Channel, data: memoryview, server: Server, pages: int) -> None:
        self.channel, self.host, self.data, self.server = guest, host, data, server
        self.device = RingCustom(guest, pages * PAGE_BYTES, data, DATA_GPFN)


@contextmanager
def custom_pair(
    driver: CustomDriver | AsyncCustomDriver,
    *,
    pages: int = 32,
    fails: bool = False,
    device: CustomDevice | None = None,
) -> Iterator[CustomPair]:
    """`fails`: the driver is expected to. `device`: one that has it, for several guests."""
    with ring_pair(pages=pages) as pair:
        data = memoryview(mmap.mmap(-1, DATA_PAGES * PAGE_BYTES))
        gpa_map = GpaMap()
        gpa_map.add(DATA_GPFN, data)
        opened = (device or CustomDevice("device", driver)).open(
            pair.host, gpa_map, memoryview(bytearray(64)), Seam()
        )
        server = Server(opened)
        try:
            yield CustomPair(pair.guest, pair.host, data, server, pages)
        finally:
            server.stop.set()
            pair.host.close()
            server.thread.join()
        assert fails or server.failed is None


def answering(answer: Callable[[bytes], bytes]) -> CustomDriver:
    """A driver that overrides `answer`."""

    class Answering(CustomDriver):
        def answer(self, request: bytes) -> bytes:
            return answer(request)

    return Answering(CONTEXT)
