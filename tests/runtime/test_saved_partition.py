"""The file of a saved partition: what goes in comes out, and nothing else is ever taken for one."""

import io
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.config.model import load
from runtime.machine import saved_partition
from runtime.machine.questions import RequestRefused
from runtime.machine.saved_partition import DiskIdentity, SavedPartitionError
from runtime.machine.saving import saveable

STATES = st.one_of(
    st.binary(max_size=300),
    st.integers(0, 20_000).map(bytes),
    st.tuples(st.integers(0, 9000), st.binary(max_size=300)).map(lambda one: bytes(one[0]) + one[1]),
)


def _written(folder: Path, state: bytes) -> bytes:
    path = folder / "one.saved"
    disks = [DiskIdentity("disk0", "/somewhere", 1 << 20, 7, 8, 9)]
    size = saved_partition.write(path, "machine", "one", "module:main", 5, disks, state)
    data = path.read_bytes()
    assert len(data) == size
    assert [one.name for one in folder.iterdir()] == ["one.saved"]  # nothing else is left
    return data


@settings(max_examples=40, deadline=None)
@given(state=STATES)
def test_a_state_comes_back_as_it_was(tmp_path_factory: pytest.TempPathFactory, state: bytes) -> None:
    data = _written(tmp_path_factory.mktemp("saved"), state)
    saved = saved_partition.read(io.BytesIO(data))
    assert saved.state == state
    assert saved.description.partition == "one"
    assert len(data) < 1000 + len(state.strip(b"\0")) + 2 * saved_partition.PAGE_BYTES  # zeros take no room


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return _written(tmp_path_factory.mktemp("saved"), b"a state" * 900)


@settings(max_examples=200, deadline=None)
@given(changes=st.data())
def test_what_was_changed_is_refused(written: bytes, changes: st.DataObject) -> None:
    """Any byte, anywhere; a cut; a tail. Never another error, never a state that was not saved."""
    data = bytearray(written)
    at = changes.draw(st.integers(0, len(data) - 1))
    match changes.draw(st.sampled_from(["flip", "cut", "tail"])):
        case "flip":
            data[at] ^= changes.draw(st.integers(1, 255))
        case "cut":
            del data[at:]
        case "tail":
            data += b"\0"
    with pytest.raises(SavedPartitionError):
        saved_partition.read(io.BytesIO(bytes(data)))


@settings(max_examples=200, deadline=None)
@given(noise=st.binary(max_size=200), head=st.booleans())
def test_noise_is_refused(noise: bytes, head: bool) -> None:
    data = saved_partition.MAGIC + (1).to_bytes(4, "little") + noise if head else noise
    with pytest.raises(SavedPartitionError):
        saved_partition.read(io.BytesIO(data))


def test_a_disk_that_has_changed_is_named(tmp_path: Path) -> None:
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(4096))
    disk = DiskIdentity.of("disk0", str(image))
    assert saved_partition.changed_disks([disk]) == []
    image.write_bytes(b"x" * 4096)
    assert "disk0" in saved_partition.changed_disks([disk])[0]
    image.unlink()
    assert "No such file" in saved_partition.changed_disks([disk])[0]


def test_a_guest_of_machine_code_is_refused_for_what_it_has_and_not_for_what_would_not_help() -> None:
    config = load(Path(__file__).parents[2] / "configs" / "bootsector.toml")
    with pytest.raises(RequestRefused, match="emulated devices") as refused:
        saveable(config, "pc")
    assert "integration" not in str(refused.value)
    assert "\n" not in str(refused.value)
