"""Whose a device can be, and what can be done when it fails: what a config is refused for."""

from pathlib import Path

import pytest

from runtime.config.document import ConfigError
from runtime.config.loading import load

GOOD = """
[machine]
name = "test"
architecture = "microkernelized"

[[root.device]]
name = "disk0"
kind = "disk"
backend = "file"
path = "{folder}/own.img"
size = "64KiB"
assigned_to = "one"
on_error = "remove"

[[partition]]
name = "one"
program = "partitions.guests.idle:main"
[[partition.device]]
name = "disk0"

[[partition]]
name = "two"
program = "partitions.guests.idle:main"
"""


TWO_HAVE_IT = 'name = "two"\nprogram = "partitions.guests.idle:main"\n[[partition.device]]\nname = "disk0"\n'


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('assigned_to = "one"', 'assigned_to = "two"'),  # which does not have it
        ('assigned_to = "one"', 'assigned_to = "nobody"'),
        (
            'kind = "disk"\nbackend = "file"\npath = "{folder}/own.img"\nsize = "64KiB"',
            'kind = "net"\nbackend = "switch"',
        ),
        ('backend = "file"\npath = "{folder}/own.img"', 'backend = "memory"'),
        ('"microkernelized"', '"hosted"'),
        ('"microkernelized"', '"monolithic"'),
        ('name = "two"\nprogram = "partitions.guests.idle:main"\n', TWO_HAVE_IT),
        ('on_error = "remove"', 'on_error = "explode"'),
        ('on_error = "remove"', "error_threshold = 0"),
    ],
)
def test_a_config_says_whose_a_device_is(tmp_path: Path, old: str, new: str) -> None:
    path = tmp_path / "config.toml"
    path.write_text(GOOD.format(folder=tmp_path))
    assert load(path).drivers == ()
    assert old in GOOD
    bad = GOOD.replace(old, new)
    path.write_text(bad.format(folder=tmp_path))
    with pytest.raises(ConfigError):
        load(path)


def test_an_own_device_has_no_driver_partition(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    text = GOOD.replace('"microkernelized"', '"disaggregated"').format(folder=tmp_path)
    path.write_text(text)
    assert load(path).drivers == ()
    path.write_text(text.replace('assigned_to = "one"', ""))
    assert load(path).drivers == ("disk0",)


def test_an_interface_of_the_hosts_can_be_given_away(tmp_path: Path) -> None:
    disk = 'kind = "disk"\nbackend = "file"\npath = "{folder}/own.img"\nsize = "64KiB"'
    assert disk in GOOD
    path = tmp_path / "config.toml"
    path.write_text(GOOD.replace(disk, 'kind = "net"\nbackend = "tap"\ninterface = "pv0"'))
    assert load(path).device("disk0").assigned_to == "one"
