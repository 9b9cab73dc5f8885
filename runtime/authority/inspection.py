"""Looking at a running machine: what every process of it holds, and whether that is what its config grants.

A machine goes on while it is looked at. So what the hypervisor says is asked before and after, and what does not fit is
looked for again: only what stays is reported.
"""

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import msgspec

from runtime.authority.comparing import Excess, find_excess
from runtime.authority.granted import granted
from runtime.authority.naming import Naming
from runtime.authority.proc_files import read_process, take_census
from runtime.authority.process_names import Tables
from runtime.authority.socket_peers import read_sockets
from runtime.authority.vocabulary import Grant, Holding
from runtime.config.model import MachineConfig, decode_value
from runtime.machine.debug_client import DebugClient
from runtime.machine.management_client import ManagementClient, NoAnswer, RequestRefused
from runtime.machine.rundir import MachineFolder

LOOKS_MAX: Final = 4  # at a machine in which something does not fit
_PAUSE_S: Final = 0.05
_ANSWER_S_MAX: Final = 3.0


@dataclass(frozen=True, slots=True)
class Report:
    processes: Mapping[str, int]  # pid by name
    holdings: Sequence[Holding]
    excess: Sequence[Excess]
    strangers: Sequence[str]  # processes of the machine that the hypervisor does not know
    unreadable: Mapping[str, str]  # by process: why
    silent: str | None  # why the root did not say what it uses guests' pages for

    @property
    def is_clean(self) -> bool:
        """Every process could be read, and holds what the config grants."""
        return not (self.excess or self.strangers or self.unreadable)


def inspect(folder: MachineFolder) -> Report:
    """Raises HypervisorSilent: without its tables nothing has a name; and what `ManagementClient.request` does."""
    with ManagementClient(folder, _ANSWER_S_MAX) as client:
        grants = granted(_config_of(client))
        stays = _look(folder, client, grants)
        for look in range(LOOKS_MAX - 1):
            if stays.is_clean:
                break
            time.sleep(_PAUSE_S * 2**look)  # a process on its way may not get a processor at once
            before, report = stays, _look(folder, client, grants)
            keys = {_key(one) for one in before.excess}
            stays = replace(
                report,
                excess=[one for one in report.excess if _key(one) in keys],
                strangers=[one for one in report.strangers if one in before.strangers],
                unreadable={
                    name: why for name, why in report.unreadable.items() if name in before.unreadable
                },
            )
    return stays


def _key(excess: Excess) -> tuple[object, ...]:
    held = excess.held
    return held.process, held.kind, held.subject


def _config_of(client: ManagementClient) -> MachineConfig:
    return msgspec.convert(
        client.request("config"),
        MachineConfig,
        dec_hook=lambda kind, value: decode_value(kind, value, Path("/")),
    )


def _look(folder: MachineFolder, client: ManagementClient, grants: Iterable[Grant]) -> Report:
    with DebugClient(folder) as debug:
        before = list(debug.rows("objects", "key"))
        census = take_census(folder.pid)
        files = [found for pid in census.names if (found := read_process(pid)) is not None]
        sockets = read_sockets()
        partitions = list(debug.rows("partitions", "id"))
        processes = debug.ask("processes")
        after = list(debug.rows("objects", "key"))
    memory, silent = _memory_names(client, partitions)
    tables = Tables(partitions, [*before, *after], processes, memory)
    naming = Naming(census, files, tables, sockets, {grant.process for grant in grants})
    holdings = naming.holdings()
    excess = find_excess(holdings, grants, devices_known=silent is None)
    return Report(naming.processes, holdings, excess, naming.strangers, naming.unreadable, silent)


def _memory_names(
    client: ManagementClient, partitions: Sequence[Mapping[str, Any]]
) -> tuple[dict[str, list[Mapping[str, Any]]], str | None]:
    """What the root says, of each of its children. Its word gives names, it excuses nothing that another holds."""
    named: dict[str, list[Mapping[str, Any]]] = {}
    for row in partitions:
        if row["parent"] != 1 or row["state"] != "active":
            continue
        try:
            named[row["name"]] = client.request("memory", name=row["name"])["memory"]
        except (NoAnswer, RequestRefused) as error:
            return named, str(error)
    return named, None
