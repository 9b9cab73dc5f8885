"""Device domains: which pages of a partition a device may touch. One family of `runtime.hypercalls.caller`."""

from __future__ import annotations

from runtime.abi import PARTITION_SELF, HypercallCode, MapFlags
from runtime.hypercalls.connection import HypercallSocket


class DeviceDomainCalls(HypercallSocket):
    """See `runtime.hypercalls.caller.HypercallPort`. A device is the partition that drives it."""

    def create_device_domain(self, domain: int, partition: int = PARTITION_SELF) -> None:
        """An empty domain of the partition's own slots; it costs a page, and one for each slot in it."""
        self.call(HypercallCode.CREATE_DEVICE_DOMAIN, partition=partition, domain=domain)

    def delete_device_domain(self, domain: int, partition: int = PARTITION_SELF) -> None:
        """OBJECT_IN_USE while a device is attached."""
        self.call(HypercallCode.DELETE_DEVICE_DOMAIN, partition=partition, domain=domain)

    def attach_device(self, domain: int, device: int, partition: int = PARTITION_SELF) -> None:
        """From now on nothing is mapped into `device` but its own pages and those of the domain."""
        self.call(HypercallCode.ATTACH_DEVICE_DOMAIN, partition=partition, domain=domain, device=device)

    def detach_device(self, device: int, partition: int = PARTITION_SELF) -> None:
        """OBJECT_IN_USE while it maps pages of others."""
        self.call(HypercallCode.DETACH_DEVICE_DOMAIN, partition=partition, device=device)

    def map_device_pages(
        self,
        domain: int,
        gpfn: int,
        pages: int,
        flags: MapFlags = MapFlags.READ | MapFlags.WRITE,
        partition: int = PARTITION_SELF,
    ) -> int:
        """Put the partition's own slots that the range touches into its domain; returns how many they are."""
        result = self.call(
            HypercallCode.MAP_DEVICE_GPA_PAGES,
            partition=partition,
            domain=domain,
            gpfn=gpfn,
            pages=pages,
            flags=int(flags),
        )
        return result.integer("slots")

    def unmap_device_pages(self, domain: int, gpfn: int, pages: int, partition: int = PARTITION_SELF) -> int:
        """Take them out; returns how many went. OBJECT_IN_USE while a device of the domain maps one."""
        result = self.call(
            HypercallCode.UNMAP_DEVICE_GPA_PAGES, partition=partition, domain=domain, gpfn=gpfn, pages=pages
        )
        return result.integer("slots")
