"""How many queues a disk can have, and where: what a config is refused for, in one line."""

from pathlib import Path

import pytest

from partitions.drivers.messages import SUB_CHANNEL_INDEX_MAX
from runtime.config.devices import QUEUES_MAX
from runtime.config.document import ConfigError
from runtime.config.loading import load

DISK = 'kind = "disk"\nbackend = "memory"\nsize = "64KiB"'
GOOD = f"""
[machine]
name = "test"
architecture = "microkernelized"
[[root.device]]
name = "disk0"
{DISK}
queues = {QUEUES_MAX}
[[partition]]
name = "one"
program = "partitions.guests.idle:main"
[[partition.device]]
name = "disk0"
"""


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        (f"queues = {QUEUES_MAX}", f"queues = {QUEUES_MAX + 1}", "a whole number from 1 to 8"),
        (f"queues = {QUEUES_MAX}", "queues = 0", "a whole number from 1 to 8"),
        (DISK, 'kind = "net"\nbackend = "switch"', 'kind = "disk"'),
        ('"microkernelized"', '"hosted"', '1, with architecture = "hosted"'),
        ('"microkernelized"', '"microkernel"', '1, with architecture = "microkernel"'),
    ],
)
def test_a_config_says_where_there_are_queues(tmp_path: Path, old: str, new: str, reason: str) -> None:
    path = tmp_path / "config.toml"
    for architecture in ("microkernelized", "disaggregated", "monolithic"):
        path.write_text(GOOD.replace("microkernelized", architecture))
        assert load(path).device("disk0").queues == QUEUES_MAX
    assert old in GOOD
    path.write_text(GOOD.replace(old, new))
    with pytest.raises(ConfigError) as refused:
        load(path)
    assert reason in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_driver_partition_can_be_told_of_each_sub_channel() -> None:
    assert QUEUES_MAX - 1 <= SUB_CHANNEL_INDEX_MAX
