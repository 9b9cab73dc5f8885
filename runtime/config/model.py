"""What a machine is made of: the typed model of a config file.

These classes are the one declaration. The loader, the `validate` command, the error texts and the JSON
schema for editors (configs/partvisor.schema.json) are all derived from them.
"""

import enum
import json
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta

from runtime.abi import CPU_WEIGHT_DEFAULT, CPU_WEIGHT_MAX, WHOLE_PROCESSOR
from runtime.config.architecture import Architecture, driver_names
from runtime.config.devices import DeviceConfig
from runtime.config.emulated import EMULATED_MAX, EmulatedDeviceConfig, InterceptWay
from runtime.config.sandbox import SandboxMode
from runtime.config.shape import PROGRAM_PATTERN, Name, Shape
from runtime.config.shares import SHARE_PATTERN, CpuShare
from runtime.config.sizes import SIZE_PATTERN, ByteSize, MemorySize, RingSize, format_size
from runtime.reserved_names import ROOT

PATH_CHARACTERS_MAX: Final = 4095  # PATH_MAX of Linux, less its closing zero
PARTITIONS_MAX: Final = 256
DEVICES_MAX: Final = 64
FILES_MAX: Final = 16  # of one partition; what the hypervisor hands over at its birth
VPS_MAX: Final = 64

CpuNumber = Annotated[int, Meta(ge=0, le=4095)]


class OnRootFailure(enum.StrEnum):
    HALT = "halt"  # the whole machine goes down
    RESTART = "restart"  # a new root is forked and takes over
    STANDBY = "standby"  # a second root waits, and takes over


class SignalRoute(enum.StrEnum):
    """How an interrupt travels: DIRECT is the target's own doorbell, BROKER goes through the hypervisor."""

    DIRECT = "direct"
    BROKER = "broker"


class WaitingKind(enum.StrEnum):
    """What a side does while its ring is empty."""

    ADAPTIVE = "adaptive"
    SPIN = "spin"
    BLOCK = "block"


class SchedulerChoice(enum.StrEnum):
    """By what the hypervisor carries weights, reserves and caps out."""

    AUTO = "auto"
    CGROUP2 = "cgroup2"
    CGROUP1 = "cgroup1"
    SIGNALS = "signals"


class FileMode(enum.StrEnum):
    READ = "read"
    WRITE = "write"  # created if missing, emptied if not
    READ_WRITE = "read-write"  # must exist
    LISTEN = "listen"  # a Unix socket, made for it, on which its program accepts


class MachineSettings(Shape, frozen=True, kw_only=True):
    """[machine]"""

    name: Annotated[Name, Meta(description="What `partvisor list` calls the machine.")]
    memory: Annotated[MemorySize, Meta(description="All memory of the machine; partitions draw from it.")] = (
        msgspec.field(default_factory=lambda: MemorySize(512 << 20))
    )
    architecture: Annotated[Architecture, Meta(description="Who runs the root's devices.")] = (
        Architecture.MICROKERNELIZED
    )
    driver_memory: Annotated[
        MemorySize,
        Meta(description="Deposited for each driver partition, beside the pages of a memory disk."),
    ] = msgspec.field(default_factory=lambda: MemorySize(4 << 20))
    on_root_failure: Annotated[OnRootFailure, Meta(description="What happens when the root dies.")] = (
        OnRootFailure.HALT
    )
    hang_ms: Annotated[
        int,
        Meta(ge=20, le=60_000, description="A root without a heartbeat for so long is hung, and replaced."),
    ] = 1_000
    stuck_ms: Annotated[
        int,
        Meta(
            ge=50, le=600_000, description="A channel that holds work and does not move for so long is stuck."
        ),
    ] = 5_000
    signal_route: Annotated[
        SignalRoute, Meta(description="How interrupts travel, for each device that does not say otherwise.")
    ] = SignalRoute.DIRECT
    waiting: Annotated[
        WaitingKind, Meta(description="How both sides wait, for each device that does not say otherwise.")
    ] = WaitingKind.ADAPTIVE

    scheduler: Annotated[
        SchedulerChoice,
        Meta(
            description="What carries weights, reserves and caps out: cgroups where they are writable and can"
            " do it, otherwise signals; or one of them alone."
        ),
    ] = SchedulerChoice.AUTO
    sandbox: Annotated[
        SandboxMode, Meta(description="on: the best that this host allows; strict: all of it, or no machine.")
    ] = SandboxMode.ON


class RootConfig(Shape, frozen=True, kw_only=True):
    """[root]"""

    cpus: Annotated[
        tuple[CpuNumber, ...],
        Meta(description="Host CPUs that the root may run on; left out: any.", max_length=4096),
    ] = ()
    devices: Annotated[tuple[DeviceConfig, ...], Meta(max_length=DEVICES_MAX)] = msgspec.field(
        name="device", default=()
    )


class PartitionDeviceConfig(Shape, frozen=True, kw_only=True):
    """[[partition.device]]: one device of the parent, offered to this partition over a channel."""

    name: Annotated[
        Name, Meta(description="Of a [[root.device]]; or of a [[partition.device]] of its parent.")
    ]
    ring_bytes: Annotated[
        RingSize, Meta(description="Data area of the ring, each direction; the header page is not counted.")
    ] = msgspec.field(default_factory=lambda: RingSize(64 << 10))
    signal_route: Annotated[
        SignalRoute | None, Meta(description="Left out: as [machine] signal_route says.")
    ] = None
    waiting: Annotated[WaitingKind | None, Meta(description="Left out: as [machine] waiting says.")] = None


class PartitionFileConfig(Shape, frozen=True, kw_only=True):
    """[[partition.file]]: a file that the platform opens and hands over as a descriptor."""

    name: Annotated[Name, Meta(description="What the program asks for.")]
    path: Annotated[
        Path | None,
        Meta(description="Relative to this config's folder; left out, for 'listen' alone: the machine's."),
    ] = None
    mode: Annotated[
        FileMode,
        Meta(description="write: made or emptied; read-write: must exist; listen: a socket to accept on."),
    ] = FileMode.READ


class PartitionTapConfig(Shape, frozen=True, kw_only=True):
    """[partition.tap]: an interface in the partition's own network namespace, for ordinary programs."""

    device: Annotated[Name, Meta(description="A [[partition.device]] of this partition, of kind 'net'.")]
    address: Annotated[
        str | None, Meta(description="Of the interface, as '10.0.0.1/24'; left out: it has none.")
    ] = None
    gateway: Annotated[str | None, Meta(description="Where all else is sent; left out: nowhere.")] = None


class PartitionConfig(Shape, frozen=True, kw_only=True):
    """[[partition]]"""

    name: Name
    parent: Annotated[
        Name, Meta(description="The partition that creates it: 'root', or another one's name.")
    ] = ROOT
    program: Annotated[
        str,
        Meta(
            pattern=PROGRAM_PATTERN,
            max_length=255,
            description="What runs in it, as 'package.module:function'",
        ),
    ]
    args: Annotated[dict[str, Any], Meta(description="Handed to the program as they stand.")] = msgspec.field(
        default_factory=dict
    )
    restore: Annotated[
        Path | None, Meta(description="A file of `partvisor save`, from which it goes on at the first start.")
    ] = None
    memory: Annotated[MemorySize, Meta(description="Deposited for it by its parent.")] = msgspec.field(
        default_factory=lambda: MemorySize(64 << 20)
    )
    vps: Annotated[int, Meta(ge=1, le=VPS_MAX, description="Virtual processors.")] = 1
    cpus: Annotated[
        tuple[CpuNumber, ...],
        Meta(description="Host CPUs that it may run on; left out: any.", max_length=4096),
    ] = ()
    weight: Annotated[
        int,
        Meta(ge=1, le=CPU_WEIGHT_MAX, description="Share of contended processor time among its siblings."),
    ] = CPU_WEIGHT_DEFAULT
    reserve: Annotated[
        CpuShare,
        Meta(description="Guaranteed to each VP whenever it wants to run, such as '20%' of a processor."),
    ] = msgspec.field(default_factory=lambda: CpuShare(0))
    cap: Annotated[
        CpuShare, Meta(description="The most that each VP gets, such as '50%' of a processor; 100%: no cap.")
    ] = msgspec.field(default_factory=lambda: CpuShare(WHOLE_PROCESSOR))
    privileges: Annotated[
        tuple[str, ...] | None,
        Meta(
            description="What it may ask of the hypervisor: names of the TLFS's privilege bits, such as"
            " 'post_messages'; left out: what a guest needs."
        ),
    ] = None
    devices: Annotated[tuple[PartitionDeviceConfig, ...], Meta(max_length=DEVICES_MAX)] = msgspec.field(
        name="device", default=()
    )
    integration: Annotated[
        bool,
        Meta(
            description="Offer it heartbeat, shutdown, time, key-value pairs and backup. For the root's own"
            " partitions."
        ),
    ] = False
    streams: Annotated[
        bool,
        Meta(
            description="Stream sockets to others that have them, and to the host's. For the root's own partitions."
        ),
    ] = False
    tap: Annotated[
        PartitionTapConfig | None,
        Meta(description="For ordinary programs in it. For the root's own partitions."),
    ] = None
    sandbox: Annotated[SandboxMode | None, Meta(description="Left out: as [machine] sandbox says.")] = None
    intercepts: Annotated[
        InterceptWay, Meta(description="How accesses to emulated devices travel: 'direct' is the fast way.")
    ] = InterceptWay.HYPERVISOR
    emulated: Annotated[tuple[EmulatedDeviceConfig, ...], Meta(max_length=EMULATED_MAX)] = ()
    files: Annotated[tuple[PartitionFileConfig, ...], Meta(max_length=FILES_MAX)] = msgspec.field(
        name="file", default=()
    )


class MachineConfig(Shape, frozen=True, kw_only=True):
    """A whole config file. Sizes are bytes, paths are absolute."""

    machine: MachineSettings
    root: RootConfig = RootConfig()
    partitions: Annotated[tuple[PartitionConfig, ...], Meta(max_length=PARTITIONS_MAX)] = msgspec.field(
        name="partition", default=()
    )

    def device(self, name: str) -> DeviceConfig:
        """The root's device of that name. KeyError: there is none (never for a name in a loaded config)."""
        for device in self.root.devices:
            if device.name == name:
                return device
        raise KeyError(name)

    @property
    def drivers(self) -> tuple[str, ...]:
        """Names of the driver partitions."""
        guests = {
            partition.name: [device.name for device in partition.devices]
            for partition in self.partitions
            if partition.parent == ROOT
        }
        return driver_names(self.machine.architecture, self.root.devices, guests)

    def path_of(self, name: str) -> str:
        """What the machine calls the configured partition `name`: "inner", or "outer/inner" for a child of "outer"."""
        parent = next(partition.parent for partition in self.partitions if partition.name == name)
        return name if parent == ROOT else f"{self.path_of(parent)}/{name}"

    def signal_route_of(self, device: PartitionDeviceConfig) -> SignalRoute:
        return device.signal_route or self.machine.signal_route

    def waiting_of(self, device: PartitionDeviceConfig) -> WaitingKind:
        return device.waiting or self.machine.waiting


def decode_value(kind: type, value: object, folder: Path) -> object:
    """Read a value of a type that TOML lacks. ValueError: the text says what is allowed."""
    if issubclass(kind, ByteSize):
        return kind.parse(value)
    if issubclass(kind, CpuShare):
        return CpuShare.parse(value)
    if issubclass(kind, Path):
        if not isinstance(value, str) or not 0 < len(value) <= PATH_CHARACTERS_MAX or "\0" in value:
            raise ValueError(f"a path, 1 to {PATH_CHARACTERS_MAX} characters")
        return folder / value
    raise NotImplementedError(kind)


def schema_of_value(kind: type) -> dict[str, Any]:
    """The JSON schema of the same types."""
    if issubclass(kind, ByteSize):
        number = {"type": "integer", "minimum": kind.bytes_min, "maximum": kind.bytes_max}
        return {"anyOf": [number, {"type": "string", "pattern": SIZE_PATTERN}]}
    if issubclass(kind, CpuShare):
        return {"type": "string", "pattern": SHARE_PATTERN}
    if issubclass(kind, Path):
        return {"type": "string", "minLength": 1, "maxLength": PATH_CHARACTERS_MAX}
    raise NotImplementedError(kind)


def to_tables(config: MachineConfig) -> dict[str, Any]:
    """The config as plain tables: numbers, texts, lists and dicts, ready for JSON or TOML."""
    encoded = msgspec.msgpack.encode(config, enc_hook=_plain)
    tables: dict[str, Any] = msgspec.msgpack.decode(encoded)  # by this way arrays are lists
    return tables


def _plain(value: object) -> object:
    if isinstance(value, CpuShare):
        return value.text
    return int(value) if isinstance(value, ByteSize) else str(value)


def json_schema() -> dict[str, Any]:
    """The JSON schema of a config file, for editors."""
    schema: dict[str, Any] = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "partvisor machine",
        **msgspec.json.schema(MachineConfig, schema_hook=schema_of_value),
    }
    for shape in Shape.__subclasses__():  # msgspec leaves the defaults of our own types out
        for field in msgspec.structs.fields(shape):
            factory = field.default_factory
            if callable(factory) and isinstance(default := factory(), ByteSize | CpuShare):
                properties = schema["$defs"][shape.__name__]["properties"]
                text = default.text if isinstance(default, CpuShare) else format_size(default)
                properties[field.encode_name]["default"] = text
    plain: dict[str, Any] = json.loads(json.dumps(schema))  # as it will be read: tuples are lists
    return plain
