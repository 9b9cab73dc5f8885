"""What a config grants to each process of its machine. A pure function: no look at any machine.

It is the docs' table (docs/authority.md) for one config, written down a second time and from the other side: nothing of
what hands descriptors out is used here.
"""

from collections.abc import Iterable, Iterator, Mapping

from runtime.authority.vocabulary import (
    CAPTURES,
    HYPERVISOR,
    JANITOR,
    PLATFORM,
    ROOT,
    STANDBY,
    STREAM_CHANNELS,
    USER_NETWORK,
    ZYGOTE,
    Grant,
    Kind,
    channel_of,
    doorbell_of,
    programs_of,
    streams_of,
    viewers_of,
)
from runtime.config.architecture import MONITOR_SUFFIX, Architecture
from runtime.config.devices import BackendKind, DeviceConfig, DeviceKind
from runtime.config.model import FileMode, MachineConfig, OnRootFailure, PartitionConfig
from runtime.machine.listening_sockets import clients_of

_OF_A_PARTITION = (Kind.SYNIC, Kind.VECTORS, Kind.LINE, Kind.HYPERCALLS, Kind.PAGES)
_TUN = "/dev/net/tun"
_READ_ONLY = (Kind.REFERENCE, Kind.STATISTICS)
_OF_A_BACKEND: Mapping[BackendKind | None, tuple[str, ...]] = {
    BackendKind.TAP: (_TUN,),
    BackendKind.PTY: ("/dev/ptmx", "/dev/pts/"),
}
_OF_PROGRAMS = (("/usr/", "r"), ("/etc/", "r"), ("/tmp/", "rw"))  # that /tmp is their own
_INTEGRATION = ("heartbeat", "shutdown", "timesync", "kvp", "vss")
_OF_THE_HYPERVISOR = (
    *_OF_A_PARTITION,
    *_READ_ONLY,
    Kind.TRACE,
    Kind.RECORDER,
    Kind.DOORBELL,
    Kind.WATCH,
    Kind.PROCESS,
    Kind.SOCKET,
    Kind.FIRMWARE,  # it keeps the root's end for the root's successors
    Kind.CONSOLE,
)


def granted(config: MachineConfig) -> frozenset[Grant]:
    """Everything that a process of this machine may hold, and nothing else."""
    return frozenset(_grants(config))


def _grants(config: MachineConfig) -> Iterator[Grant]:
    yield from _frame(config)
    resident = config.machine.architecture is Architecture.MONOLITHIC
    for driver in config.drivers:
        if not resident:
            yield from _partition(driver)
            yield Grant(driver, Kind.TRACE, driver)
        yield Grant(ROOT, Kind.PAGES, channel_of(driver, driver))  # its seam and counters
        yield Grant(ROOT, Kind.TRACE, driver)  # to be handed to its next process
    for device in config.root.devices:
        holder = ROOT if device.name not in config.drivers else _process_of(config, device.name)
        holder = device.assigned_to or holder
        if device.path is not None:
            yield Grant(holder, Kind.FILE, str(device.path), "r" if device.read_only else "rw")
        if device.base is not None:
            yield Grant(holder, Kind.FILE, str(device.base), "r")
        if device.backend is BackendKind.CONSOLE:
            yield Grant(holder, Kind.SOCKET, PLATFORM)
            yield Grant(ROOT, Kind.SOCKET, PLATFORM)
        if device.kind is DeviceKind.NET:
            yield Grant(holder, Kind.SOCKET, CAPTURES)
            if device.name in config.drivers:  # by the root, which looks up what they want, and hands them on
                yield from _passage(device.name, holder)
        if device.backend is BackendKind.USER:
            yield Grant(holder, Kind.SOCKET, USER_NETWORK)
            yield Grant(USER_NETWORK, Kind.SOCKET, holder)
            yield Grant(USER_NETWORK, Kind.STREAM)
            yield Grant(PLATFORM, Kind.PROCESS, USER_NETWORK)
        for place in _OF_A_BACKEND.get(device.backend, ()):
            yield Grant(holder, Kind.FILE, place)
            yield Grant(
                ROOT, Kind.FILE, place
            )  # it keeps the line, so that who is at its other end notices no restart
    parents = {partition.parent for partition in config.partitions}
    for partition in config.partitions:
        path = config.path_of(partition.name)
        yield from _partition(path)
        yield Grant(path, Kind.TRACE, partition.name)
        if partition.name in parents:
            yield Grant(path, Kind.WATCH, path)
        for file in partition.files:
            if file.mode is FileMode.LISTEN:
                if file.path is None:
                    yield Grant(path, Kind.SOCKET, clients_of(partition.name, file.name))
                else:
                    yield Grant(path, Kind.FILE, str(file.path), "rw")
                continue
            yield Grant(path, Kind.FILE, str(file.path), "r" if file.mode is FileMode.READ else "rw")
        if partition.emulated:
            yield Grant(_parent(config, partition), Kind.PAGES, path)  # to do its string and disk accesses
            yield from _bells(path, _parent(config, partition))
            yield Grant(ROOT, Kind.SOCKET, PLATFORM)  # its serial port's console
        if any(config.device(one.name).kind is DeviceKind.VIDEO for one in partition.devices):
            yield Grant(ROOT, Kind.SOCKET, viewers_of(path))
        if partition.streams:
            yield from _bells(path, ROOT)
            yield Grant(ROOT, Kind.SOCKET, streams_of(path))
            yield Grant(ROOT, Kind.PAGES, channel_of(path, STREAM_CHANNELS))
        if partition.tap is not None:
            yield from _programs(path)
        if partition.integration:
            yield from _bells(path, ROOT)
            for service in _INTEGRATION:
                yield Grant(ROOT, Kind.PAGES, channel_of(path, f"integration:{service}"))
        yield from _channels(config, partition, path)


def _frame(config: MachineConfig) -> Iterator[Grant]:
    """The processes that every machine has."""
    yield from (Grant(HYPERVISOR, kind) for kind in _OF_THE_HYPERVISOR)
    yield from (Grant(HYPERVISOR, Kind.FILE, place) for place in ("/proc/", "/sys/fs/cgroup/"))
    for kind in (Kind.RECORDER, Kind.TRACE, Kind.SOCKET, Kind.CONSOLE, Kind.FIRMWARE):
        yield Grant(PLATFORM, kind)
    yield from (Grant(PLATFORM, Kind.PROCESS, which) for which in (ROOT, HYPERVISOR))
    yield Grant(PLATFORM, Kind.PIPE, JANITOR)
    yield Grant(JANITOR, Kind.PIPE, PLATFORM)
    yield from _partition(ROOT)
    yield Grant(ROOT, Kind.TRACE, ROOT)
    yield Grant(ROOT, Kind.FIRMWARE, ROOT)
    yield Grant(ROOT, Kind.WATCH, ROOT)
    yield Grant(ZYGOTE, Kind.SOCKET, HYPERVISOR)
    yield from (
        Grant(process, Kind.PLACE, access="r") for process in (ZYGOTE, STANDBY)
    )  # for partitions' sandboxes
    if config.machine.on_root_failure is OnRootFailure.STANDBY:
        yield Grant(STANDBY, Kind.HYPERCALLS, STANDBY)
        yield Grant(STANDBY, Kind.CONSOLE, PLATFORM)
    for process in (PLATFORM, HYPERVISOR, ROOT, ZYGOTE, STANDBY, JANITOR):
        yield Grant(process, Kind.STREAM)


def _partition(path: str) -> Iterator[Grant]:
    """What any partition's process has of its own."""
    yield from (Grant(path, kind, path) for kind in _OF_A_PARTITION)
    yield from (Grant(path, kind, path, "r") for kind in _READ_ONLY)
    yield Grant(path, Kind.CONSOLE, PLATFORM)
    yield Grant(path, Kind.STREAM)


def _programs(path: str) -> Iterator[Grant]:
    """A TAP, and what runs ordinary programs on it: nothing of theirs is anybody's but their guest's."""
    yield Grant(path, Kind.FILE, _TUN)
    yield Grant(path, Kind.PIPE, programs_of(path))
    yield Grant(programs_of(path), Kind.PIPE, path)
    yield Grant(programs_of(path), Kind.PROCESS, programs_of(path))
    for place, access in _OF_PROGRAMS:
        yield Grant(programs_of(path), Kind.FILE, place, access)


def _parent(config: MachineConfig, partition: PartitionConfig) -> str:
    return ROOT if partition.parent == ROOT else config.path_of(partition.parent)


def _process_of(config: MachineConfig, driver: str) -> str:
    return HYPERVISOR if config.machine.architecture is Architecture.MONOLITHIC else driver


def _bells(one: str, other: str, processes: Iterable[str] = ()) -> Iterator[Grant]:
    """Each way; both hold both. `processes`: who holds them, if not the partitions of these names."""
    for process in processes or (one, other):
        yield Grant(process, Kind.DOORBELL, doorbell_of(one, other))
        yield Grant(process, Kind.DOORBELL, doorbell_of(other, one))


def _channels(config: MachineConfig, partition: PartitionConfig, path: str) -> Iterator[Grant]:
    for attached in partition.devices:
        if partition.parent != ROOT:  # its parent serves it, whatever the device was above
            parent = _parent(config, partition)
            yield Grant(parent, Kind.PAGES, path)
            yield from _bells(path, parent)
            continue
        device = config.device(attached.name)
        if device.assigned_to is not None:
            continue  # its server is in the same process
        if device.kind is DeviceKind.LINK:
            yield from _link(config, device, path)
        elif device.name in config.drivers:
            yield from _driven(config, device, path)
        else:
            yield Grant(ROOT, Kind.PAGES, channel_of(path, device.name))
            yield from _bells(path, ROOT)


def _driven(config: MachineConfig, device: DeviceConfig, path: str) -> Iterator[Grant]:
    """By a driver partition, or what passes on to one."""
    server = device.name
    match config.machine.architecture:
        case Architecture.HOSTED:
            monitor = path + MONITOR_SUFFIX
            yield from _messages(monitor, server)
            server = monitor
        case Architecture.MICROKERNEL:
            yield from _messages(path, server)
            return
    process = _process_of(config, server)
    yield Grant(process, Kind.PAGES, channel_of(path, device.name))
    yield from _bells(path, server, (path, process))


def _passage(driver: str, process: str) -> Iterator[Grant]:
    """Of the root into a driver partition, for sockets."""
    yield Grant(ROOT, Kind.SOCKET, process)
    yield Grant(process, Kind.SOCKET, ROOT)
    yield Grant(process, Kind.DOORBELL, doorbell_of(driver, ROOT))


def _messages(client: str, server: str) -> Iterator[Grant]:
    """A socket between the two, and the bell that says that one waits."""
    yield Grant(client, Kind.SOCKET, server)
    yield Grant(server, Kind.SOCKET, client)
    yield from _bells(server, client)


def _link(config: MachineConfig, device: DeviceConfig, path: str) -> Iterator[Grant]:
    """The first of the two lends its pages to the other; the other's own ring, which nobody uses, goes to the root."""
    ends = [each.name for each in config.partitions if any(one.name == device.name for one in each.devices)]
    lender = ends[0]
    if path == lender:
        yield Grant(ends[-1], Kind.PAGES, channel_of(lender, device.name))
        yield from _bells(lender, ends[-1])
    else:
        yield Grant(ROOT, Kind.PAGES, channel_of(path, device.name))
