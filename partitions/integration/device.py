"""An integration service as it is offered: the same one to each guest that has it, with a channel for each."""

import threading
from collections.abc import Iterable, Mapping
from typing import Any, Final
from uuid import UUID

from bus.native import Channel, GpaMap
from bus.seam import Seam
from partitions.integration.services import SERVICES, IcService
from partitions.integration.vsp import IcVsp
from partitions.stack.channel_client import ChannelClient
from runtime.abi import RegisterName
from runtime.hypercalls.caller import HypercallPort


class IntegrationDevice:
    """A ClientDevice. It has no driver and no backend: the process of the VMBus server does what there is to do."""

    shares_channels = False

    def __init__(self, service: IcService, hypercalls: HypercallPort) -> None:
        self.service: Final = service
        self.name = service.device
        self._call = hypercalls
        self._lock = threading.Lock()
        self._open: dict[int, IcVsp] = {}  # by partition; the last one that was opened

    @property
    def interface(self) -> UUID:
        return self.service.interface

    def open(self, channel: Channel, gpa_map: GpaMap, record: memoryview, seam: Seam) -> IcVsp:
        raise TypeError("a guest's own channel is opened by open_for")

    def open_for(
        self, client: ChannelClient, channel: Channel, gpa_map: GpaMap, record: memoryview, seam: Seam
    ) -> IcVsp:
        partition = client.partition

        def reference_time() -> int:
            return self._call.get_vp_registers([RegisterName.TIME_REF_COUNT], 0, partition)[0]

        with self._lock:
            self._open[partition] = vsp = IcVsp(self.service, channel, seam, reference_time)
        return vsp

    def of(self, partition: int) -> IcVsp | None:
        """Its channel's server; None: it never opened one. One that was closed says NotNow."""
        with self._lock:
            return self._open.get(partition)

    def close(self) -> None:
        pass


def integration_devices(
    tables: Iterable[Mapping[str, Any]], hypercalls: HypercallPort
) -> dict[str, IntegrationDevice]:
    """What a root offers, by name. `tables`: its [[partition]]s; nothing, where none of them wants any."""
    if not any(table.get("integration") for table in tables):
        return {}
    return {service.device: IntegrationDevice(service, hypercalls) for service in SERVICES}
