"""Drivers that take a request and never come back, of each class, wherever they live: found, replaced, and served."""

from pathlib import Path
from typing import Final

import pytest

from tests.machine.conftest import Boot, machine_toml

pytestmark = pytest.mark.machine

STUCK_MS: Final = 500
ARCHITECTURES: Final = ("microkernelized", "disaggregated", "monolithic", "hosted", "microkernel")

# Each hangs at one request, and in one of its lives: `memory` outlives a process. Lines and networks have none, so what
# they are sent says until when.
DRIVERS: Final = """
import threading
import time

import trio
from partitions.sdk import AsyncBlockDriver, AsyncCustomDriver, BlockDriver, CustomDriver
from partitions.sdk.net import NetDriver
from partitions.sdk.serial import SerialDriver


def first_time(memory):
    memory[-1] += 1
    return memory[-1] == 1


def hang_until(word):
    while b"hang" in word and time.monotonic() < float(word.partition(b"hang ")[2].split()[0]):
        time.sleep(0.01)


class Block(BlockDriver):
    def readv(self, views, offset):
        if offset == 4096 and first_time(self.context.memory):
            threading.Event().wait()
        for view in views:
            view[:] = bytes([7]) * len(view)

    def writev(self, views, offset):
        pass


class LaterBlock(AsyncBlockDriver):
    async def readv(self, views, offset):
        if offset == 4096 and first_time(self.context.memory):
            await trio.sleep_forever()
        for view in views:
            view[:] = bytes([7]) * len(view)

    async def writev(self, views, offset):
        pass


class Custom(CustomDriver):
    def answer(self, request):
        if request == b"hang" and first_time(self.context.memory):
            threading.Event().wait()
        return request.upper()


class LaterCustom(AsyncCustomDriver):
    async def serve(self, request):
        if request == b"hang" and first_time(self.context.memory):
            await trio.sleep_forever()
        return request.upper()


class Net(NetDriver):
    def __init__(self, context):
        super().__init__(context)
        self._frames = []

    def transmit(self, frames):
        for frame in frames:
            hang_until(bytes(frame))
            self._frames.append(bytes(frame[6:12]) + bytes(frame[:6]) + bytes(frame[12:]))
        return len(frames)

    def receive(self, limit):
        frames, self._frames = self._frames[:limit], self._frames[limit:]
        return frames


class Line(SerialDriver):
    def __init__(self, context):
        super().__init__(context)
        self._data = b""

    def write(self, data):
        hang_until(bytes(data))
        self._data += bytes(data).upper()
        return len(data)

    def read(self, limit):
        data, self._data = self._data[:limit], self._data[limit:]
        return data
"""
GUEST: Final = """
import time

SECONDS = 2.0  # how long a line's or a network's driver hangs


def hang():
    return b"hang %f " % (time.monotonic() + SECONDS)


def block(partition, name):
    with partition.open_disk(name) as disk:
        return disk.read(4096, 512) == disk.read(0, 512) == bytes([7]) * 512


def custom(partition, name):
    with partition.open_custom(name) as device:
        return [device.exchange(word) for word in (b"a", b"hang", b"b")] == [b"A", b"HANG", b"B"]


def net(partition, name):
    host = bytes.fromhex("020000000001")
    with partition.open_net(name) as nic:
        nic.send([host + nic.mac + b"\\x88\\xb5" + hang().ljust(60)])
        for number in range(10_000):  # frames may be lost with a driver; sooner or later one comes back
            nic.send([host + nic.mac + b"\\x88\\xb5" + b"%060d" % number])
            if any(b"%060d" % number in frame for frame in nic.receive(64, 0.05)):
                return True
    return False


def serial(partition, name):
    with partition.open_serial(name) as line:
        line.write(hang())
        line.write(b".")
        back = b""
        while not back.endswith(b"."):
            back += line.read(100, 60)
        return True


def main(partition):
    for name in list(partition.devices):
        partition.report("served", device=name, well=globals()[name.partition("-")[0]](partition, name))
"""
DEVICES: Final = {
    "block": 'kind = "disk"\nsize = "64KiB"\ndriver = "hung:Block"\n',
    "block-later": 'kind = "disk"\nsize = "64KiB"\ndriver = "hung:LaterBlock"\n',
    "custom": 'kind = "custom"\nsize = "4KiB"\ndriver = "hung:Custom"\n',
    "custom-later": 'kind = "custom"\nsize = "4KiB"\ndriver = "hung:LaterCustom"\n',
    "net": 'kind = "net"\ndriver = "hung:Net"\n',
    "serial": 'kind = "serial"\ndriver = "hung:Line"\n',
}


@pytest.mark.parametrize(
    ("architecture", "device"),
    [
        ("microkernelized", "block-later"),
        ("disaggregated", "custom-later"),
        *(
            pytest.param(architecture, device, marks=pytest.mark.soak)
            for architecture in ARCHITECTURES
            for device in DEVICES
        ),
    ],
)
def test_a_driver_that_never_comes_back_is_replaced_and_its_request_is_answered(
    architecture: str, device: str, boot: Boot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "hung.py").write_text(DRIVERS)
    (tmp_path / "hanging.py").write_text(GUEST)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    guest = '[[partition]]\nname = "guest"\nprogram = "hanging:main"\nmemory = "48MiB"\n'
    text = machine_toml(
        guest + f'[[partition.device]]\nname = "{device}"\n',
        devices=f'[[root.device]]\nname = "{device}"\n{DEVICES[device]}',
        architecture=architecture,
        on_root_failure="restart",
        hang_ms=2_000,
        stuck_ms=STUCK_MS,
    )
    machine = boot(text)
    machine.wait_for("root.stuck" if architecture == "microkernelized" else "guest.driver_stuck")
    if architecture != "monolithic":  # there nobody can end a thread: it is reported, and that is all
        assert machine.wait_for("guest.served")["fields"] == {"device": device, "well": True}
        assert machine.wait() == 0
