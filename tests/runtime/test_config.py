"""Config files: sizes, paths, overrides, and that a config survives being written and read."""

import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.config.cross_checks import ROOT_MEMORY_BYTES_MIN
from runtime.config.devices import BackendKind
from runtime.config.document import ConfigError
from runtime.config.loading import load
from runtime.config.model import SignalRoute, WaitingKind, to_tables
from runtime.config.sizes import ByteSize, DiskSize, MemorySize, RingSize, format_size
from tests.runtime.toml_writing import write_toml

PROGRAM = "json.decoder:JSONObject"  # any function that can be found
NAMES = st.from_regex("[a-z0-9][a-z0-9_-]{0,8}", fullmatch=True).filter(lambda name: name != "root")
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
ARGS = st.recursive(
    st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | TEXTS
    | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)


def config_file(folder: Path, tables: dict[str, Any]) -> Path:
    path = folder / "machine.toml"
    path.write_text(write_toml(tables), encoding="utf-8")
    return path


@given(st.integers(1, 2**62))
def test_a_size_reads_back_as_it_was_written(size_bytes: int) -> None:
    assert ByteSize.parse(format_size(size_bytes)) == size_bytes
    assert ByteSize.parse(size_bytes) == size_bytes
    assert ByteSize.parse(str(size_bytes)) == size_bytes


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("512MiB", 512 << 20),
        ("1 GiB", 1 << 30),
        ("4096", 4096),
        ("4096B", 4096),
        ("7KiB", 7168),
        ("2TiB", 2 << 40),
    ],
)
def test_the_documented_spellings_of_a_size(text: str, size_bytes: int) -> None:
    assert ByteSize.parse(text) == size_bytes


NO_SIZES = ["", "MiB", "-1", "1.5GiB", "64MB", "64mib", "0x10", " 1", "1\n", "1  GiB", "9" * 20, "٣", "1_000"]


@given(st.sampled_from(NO_SIZES) | st.text() | st.none() | st.booleans() | st.floats() | st.just([4096]))
def test_what_is_no_size_is_refused_with_what_is_allowed(value: object) -> None:
    """Any other value, unless it happens to be a plain number of bytes within the limits."""
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 20 and int(value) > 0:
        return
    with pytest.raises(ValueError, match="units B, KiB, MiB, GiB, TiB"):
        ByteSize.parse(value)


@pytest.mark.parametrize("kind", [MemorySize, RingSize, DiskSize])
@given(st.data())
def test_a_kind_of_size_accepts_exactly_its_limits(kind: type[ByteSize], data: st.DataObject) -> None:
    step = kind.multiple_of_bytes
    edges = [kind.bytes_min, kind.bytes_min - step, kind.bytes_max, kind.bytes_max + step, kind.bytes_min + 1]
    value = data.draw(st.sampled_from(edges) | st.integers(0, kind.bytes_max * 2))
    fits = kind.bytes_min <= value <= kind.bytes_max and value % step == 0
    if fits:
        assert kind.parse(value) == value
    else:
        with pytest.raises(ValueError, match=str(step)):
            kind.parse(value)


@st.composite
def machine_tables(draw: st.DrawFn) -> dict[str, Any]:
    """Tables of a sound machine: what to_tables could have produced."""
    device_names = draw(st.lists(NAMES, unique=True, max_size=3))
    devices: list[dict[str, Any]] = []
    for name in device_names:
        device = {"name": name, "kind": "disk", "size": draw(st.integers(8, 1 << 20)) * 4096}
        if draw(st.booleans()):
            device |= {"backend": "memory"}
        else:
            device |= {"backend": "file", "path": f"/tmp/{name}.img"}
        device |= {"block_bytes": draw(st.sampled_from([512, 4096]))}
        devices.append(device)
    partitions: list[dict[str, Any]] = []
    for name in draw(st.lists(NAMES, unique=True, max_size=4)):
        own = draw(st.lists(st.sampled_from(device_names), unique=True)) if device_names else []
        partitions.append(
            {
                "name": name,
                "parent": "root",
                "program": PROGRAM,
                "args": draw(st.dictionaries(TEXTS, ARGS, max_size=3)),
                "memory": draw(st.integers(2048, 8192)) * 4096,
                "vps": draw(st.integers(1, 64)),
                "privileges": draw(st.none() | st.just(["post_messages", "signal_events"])),
                "device": [
                    {
                        "name": device,
                        "ring_bytes": draw(st.integers(1, 64)) * 4096,
                        "signal_route": draw(st.sampled_from([None, "direct", "broker"])),
                        "waiting": draw(st.sampled_from([None, "adaptive", "spin", "block"])),
                    }
                    for device in own
                ],
                "file": [{"name": "python", "path": __file__, "mode": "read"}] if draw(st.booleans()) else [],
            }
        )
    memory = sum(partition["memory"] for partition in partitions) + ROOT_MEMORY_BYTES_MIN
    memory += sum(device.get("size", 0) for device in devices if device["backend"] == "memory")
    machine = {
        "name": draw(NAMES),
        "memory": memory,
        "signal_route": draw(st.sampled_from(["direct", "broker"])),
        "waiting": draw(st.sampled_from(["adaptive", "spin", "block"])),
    }
    return {"machine": machine, "root": {"device": devices}, "partition": partitions}


@given(machine_tables())
def test_a_config_survives_being_written_and_read(tables: dict[str, Any]) -> None:
    """tables -> file -> config, and once more: the same config, and all that was said is in it."""
    with tempfile.TemporaryDirectory() as folder:
        config = load(config_file(Path(folder), tables))
        again = load(config_file(Path(folder), to_tables(config)))
    assert again == config
    written = to_tables(config)
    assert written["machine"].items() >= tables["machine"].items()
    for before, after in zip(tables["partition"], written["partition"], strict=True):
        assert after["args"] == before["args"]
        assert after["memory"] == before["memory"]
        assert [device["name"] for device in after["device"]] == [
            device["name"] for device in before["device"]
        ]


def minimal(**machine: Any) -> dict[str, Any]:
    return {
        "machine": {"name": "m", **machine},
        "root": {"device": [{"name": "disk0", "kind": "disk", "backend": "memory", "size": "1MiB"}]},
        "partition": [{"name": "child", "program": PROGRAM, "device": [{"name": "disk0"}]}],
    }


def test_what_is_left_out_has_its_documented_default(tmp_path: Path) -> None:
    config = load(config_file(tmp_path, minimal()))
    (child,) = config.partitions
    assert config.machine.memory == 512 << 20
    assert (child.parent, child.memory, child.vps, child.cpus) == ("root", 64 << 20, 1, ())
    assert config.device("disk0").backend is BackendKind.MEMORY
    (device,) = child.devices
    assert device.ring_bytes == 64 << 10
    assert config.signal_route_of(device) is SignalRoute.DIRECT
    assert config.waiting_of(device) is WaitingKind.ADAPTIVE


def test_a_device_goes_the_machine_s_way_unless_it_has_its_own(tmp_path: Path) -> None:
    tables = minimal(signal_route="broker", waiting="block")
    (device,) = (config := load(config_file(tmp_path, tables))).partitions[0].devices
    assert (config.signal_route_of(device), config.waiting_of(device)) == (
        SignalRoute.BROKER,
        WaitingKind.BLOCK,
    )
    tables["partition"][0]["device"][0] |= {"signal_route": "direct", "waiting": "spin"}
    (device,) = (config := load(config_file(tmp_path, tables))).partitions[0].devices
    assert (config.signal_route_of(device), config.waiting_of(device)) == (
        SignalRoute.DIRECT,
        WaitingKind.SPIN,
    )


def test_paths_start_at_the_config_s_folder_and_overridden_ones_at_the_shell_s(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tables = minimal()
    tables["root"]["device"] = [
        {"name": "disk0", "kind": "disk", "backend": "file", "path": "one.img", "size": "1MiB"},
        {"name": "disk1", "kind": "disk", "backend": "file", "path": "two.img", "size": "1MiB"},
    ]
    shell = tmp_path / "shell"
    shell.mkdir()
    path = config_file(tmp_path, tables)
    monkeypatch.chdir(shell)
    config = load("../machine.toml", ["root.device.disk1.path=mine.img"])
    assert config.device("disk0").path == shell / ".." / "one.img"
    assert config.device("disk1").path == shell / "mine.img"
    assert load(path).device("disk0").path == tmp_path / "one.img"


@pytest.mark.parametrize(
    ("override", "args"),
    [
        ("partition.child.args.count=3", {"count": 3}),
        ("partition.0.args.count = 3", {"count": 3}),
        ("partition.child.args.deep.er=[1, 'x']", {"deep": {"er": [1, "x"]}}),
        ("partition.child.args.text=plain words, no quotes", {"text": "plain words, no quotes"}),
        ("partition.child.args.text=a=b", {"text": "a=b"}),
        ("partition.child.args.text=1\n[machine]\nname = 'x'", {"text": "1\n[machine]\nname = 'x'"}),
        ("partition.child.args={a = 1}", {"a": 1}),
    ],
)
def test_an_override_changes_one_value(tmp_path: Path, override: str, args: dict[str, Any]) -> None:
    config = load(config_file(tmp_path, minimal()), [override])
    assert config.partitions[0].args == args
    assert config.machine.name == "m"


@pytest.mark.parametrize(
    "override",
    [
        "",
        "=1",
        "machine",
        "partition.nobody.vps=1",
        "partition.7.vps=1",
        "machine.name.x=1",
        "a..b=1",
        "partition=1",
    ],
)
def test_a_bad_override_is_an_error_of_its_own(tmp_path: Path, override: str) -> None:
    path = config_file(tmp_path, minimal())
    with pytest.raises(ConfigError) as caught:
        load(path, [override])
    assert "line" not in str(caught.value)
    assert all(problem.line is None for problem in caught.value.problems)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"[machine", "found a syntax error .*at end of document"),
        (b"[machine]\nname = 'm'\nname = 'n'\n", "machine.toml:3: found a syntax error"),
        (b"\xff\xfe", "not UTF-8"),
        (b"x = " + b"[" * 100_000, "nested too deeply"),
        (b"#" * ((1 << 20) + 1), "above 1 MiB"),
    ],
)
def test_what_is_not_toml_is_refused(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "machine.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=says):
        load(path)


def test_a_file_that_can_t_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file or directory"):
        load(tmp_path / "missing.toml")
    with pytest.raises(ConfigError, match="Is a directory"):
        load(tmp_path)
