"""A partition holds the descriptors that it was handed, and no others."""

from collections import Counter

import pytest

from tests.machine.conftest import Boot, machine_toml

pytestmark = pytest.mark.machine


def test_a_guest_is_born_with_its_own_descriptors_and_no_others(boot: Boot) -> None:
    """Sockets: its hypercalls and the console; memory: its VP's two pages, each mapped; its line. Nothing of others."""
    machine = boot(
        machine_toml(
            '[[partition]]\nname = "guest"\nprogram = "tests.machine.guest_programs:list_descriptors"\n'
            'memory = "16MiB"\n'
        )
    )
    links = machine.wait_for("guest.descriptors", "guest")["fields"]["links"]
    kinds = Counter(link.split(":")[0] for link in links if not link.startswith(("/dev/", "pipe:")))
    assert kinds.pop("socket") == 2
    assert kinds.pop("anon_inode") == 1
    pages = [link for link in links if link.startswith("/memfd:")]
    assert len(pages) == 4  # SIM and SIEF: the descriptor, and the one that Python's mmap keeps
    assert not [link for link in links if link.startswith("/") and not link.startswith(("/dev/", "/memfd:"))]
    assert len([link for link in links if link.startswith("pipe:")]) <= 2  # stdout and stderr are the test's
