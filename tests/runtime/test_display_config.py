"""Keyboards, mice and screens in a config: what is refused, and where viewers may come from."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.config.document import ConfigError
from runtime.config.loading import load
from runtime.config.screen_address import ScreenAddress
from runtime.drawing.png import png_of

PARTITION = '[[partition]]\nname = "{}"\nprogram = "partitions.guests.paint:main"\n'


def refusals(
    tmp_path: Path, devices: str, partitions: str = "", architecture: str = "microkernelized"
) -> str:
    file = tmp_path / "machine.toml"
    file.write_text(
        f'[machine]\nname = "m"\nmemory = "1GiB"\narchitecture = "{architecture}"\n{devices}{partitions}'
    )
    try:
        load(file)
    except ConfigError as error:
        return str(error)
    return ""


def device(kind: str, more: str = "", name: str = "") -> str:
    return f'[[root.device]]\nname = "{name or kind}0"\nkind = "{kind}"\n{more}\n'


@pytest.mark.parametrize(
    "architecture", ["microkernelized", "disaggregated", "monolithic", "hosted", "microkernel"]
)
def test_the_three_are_accepted_in_every_architecture(tmp_path: Path, architecture: str) -> None:
    devices = device("keyboard") + device("mouse") + device("video", 'width = 640\nvnc = "[::1]:5901"')
    partition = PARTITION.format("a") + "".join(
        f'[[partition.device]]\nname = "{kind}0"\n' for kind in ("keyboard", "mouse", "video")
    )
    assert refusals(tmp_path, devices, partition, architecture) == ""


@pytest.mark.parametrize(
    ("devices", "said"),
    [
        (device("video", 'vnc = "0.0.0.0:5900"'), "ssh -L"),
        (device("video", 'vnc = "127.0.0.1:65536"'), "vnc"),
        (device("video", "width = 5000"), "width"),
        (device("mouse", "width = 500"), 'none but with kind = "video"'),
        (device("keyboard", 'backend = "file"'), "nothing with kind"),
        (device("video", 'driver = "a:B"'), "nothing with kind"),
    ],
)
def test_what_a_device_cannot_be(tmp_path: Path, devices: str, said: str) -> None:
    assert said in refusals(tmp_path, devices)


def test_a_screen_is_of_one_partition_and_a_partition_has_one(tmp_path: Path) -> None:
    both = "".join(PARTITION.format(name) + '[[partition.device]]\nname = "video0"\n' for name in "ab")
    assert "a video in one partition alone" in refusals(tmp_path, device("video"), both)
    two = device("video") + device("video", name="other")
    one = PARTITION.format("a") + "".join(
        f'[[partition.device]]\nname = "{name}0"\n' for name in ("video", "other")
    )
    assert "one video in a partition" in refusals(tmp_path, two, one)


@given(st.text(max_size=30))
def test_no_address_but_this_hosts_own_is_taken(text: str) -> None:
    try:
        taken = ScreenAddress.parse(text)
    except ValueError:
        return
    assert taken.host is None or taken.host.startswith("127.") or ":" in taken.host


def test_a_picture_has_as_many_pixels_as_it_says() -> None:
    assert png_of(1, 1, b"abc")[:8] == b"\x89PNG\r\n\x1a\n"
    with pytest.raises(ValueError, match="2 x 1"):
        png_of(2, 1, b"abc")
