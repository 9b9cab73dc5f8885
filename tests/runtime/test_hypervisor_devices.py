"""Device domains, sparse maps, and a parent's reads and writes of its child's memory."""

import pytest

from runtime.abi import ALL_PRIVILEGES, PAGE_BYTES, AccessGpaResult, HvStatus, HypercallCode, MapFlags
from tests.runtime.hypercall_scene import NEW, READ_WRITE
from tests.runtime.hypervisor_world import World

_C = HypercallCode
READ = int(MapFlags.READ)
DOMAIN = 3


class Driven:
    """A guest with two slots, a driver partition beside it, and the root above both."""

    def __init__(self, attached: bool = True) -> None:
        self.w = World()
        self.guest = self.w.child(pages=200)
        self.driver = self.w.child(pages=100, privileges=ALL_PRIVILEGES)
        for gpfn in (0x100, 0x200):
            self.w.do(1, _C.MAP_GPA_PAGES, partition=self.guest, gpfn=gpfn, pages=2, flags=NEW)
        self.w.do(1, _C.CREATE_DEVICE_DOMAIN, partition=self.guest, domain=DOMAIN)
        if attached:
            self.attach()

    def attach(self) -> None:
        self.w.do(1, _C.ATTACH_DEVICE_DOMAIN, partition=self.guest, domain=DOMAIN, device=self.driver)

    def list_slot(self, gpfn: int, flags: int = READ_WRITE) -> None:
        self.w.do(
            1,
            _C.MAP_DEVICE_GPA_PAGES,
            partition=self.guest,
            domain=DOMAIN,
            gpfn=gpfn,
            pages=1,
            flags=flags,
        )

    def give(self, gpfn: int, flags: int = READ_WRITE, source: int | None = None) -> HvStatus:
        """The root maps the slot into the driver."""
        return self.w.status(
            1,
            _C.MAP_GPA_PAGES,
            partition=self.driver,
            gpfn=gpfn,
            pages=1,
            flags=flags,
            source_partition=self.guest if source is None else source,
            source_gpfn=gpfn,
        )


def test_a_device_gets_the_pages_of_its_domain_and_no_others() -> None:
    it = Driven()
    assert it.give(0x100) == HvStatus.ACCESS_DENIED
    it.list_slot(0x100, READ)
    assert it.give(0x100) == HvStatus.ACCESS_DENIED  # listed for reading alone
    assert it.give(0x100, READ) == HvStatus.SUCCESS
    assert it.give(0x200, READ) == HvStatus.ACCESS_DENIED
    # a way round: the root's own mapping of the slot is the slot
    it.w.do(
        1,
        _C.MAP_GPA_PAGES,
        gpfn=0x200,
        pages=2,
        flags=READ,
        source_partition=it.guest,
        source_gpfn=0x200,
    )
    assert it.give(0x200, READ, source=1) == HvStatus.ACCESS_DENIED
    it.list_slot(0x200)
    assert it.give(0x200, READ, source=1) == HvStatus.SUCCESS
    # its own memory is its own
    it.w.do(it.driver, _C.MAP_GPA_PAGES, gpfn=0x800, pages=1, flags=NEW)


def test_sparse_maps_go_through_the_domain_as_well() -> None:
    it = Driven()
    it.list_slot(0x100)
    sparse = {"partition": it.driver, "flags": READ, "source_partition": it.guest}
    both = [[0x100, 0x100], [0x200, 0x200]]
    assert it.w.status(1, _C.MAP_SPARSE_GPA_PAGES, **sparse, pages=both) == HvStatus.ACCESS_DENIED
    assert it.w.status(1, _C.MAP_SPARSE_GPA_PAGES, **sparse, pages=both[:1]) == HvStatus.SUCCESS


def test_what_a_device_maps_stays_in_its_domain() -> None:
    it = Driven()
    it.list_slot(0x100)
    assert it.give(0x100) == HvStatus.SUCCESS
    take_out = {"partition": it.guest, "domain": DOMAIN, "gpfn": 0x100, "pages": 1}
    detach = {"partition": it.guest, "device": it.driver}
    for code, args in ((_C.UNMAP_DEVICE_GPA_PAGES, take_out), (_C.DETACH_DEVICE_DOMAIN, detach)):
        assert it.w.status(1, code, **args) == HvStatus.OBJECT_IN_USE
    it.w.do(it.driver, _C.UNMAP_GPA_PAGES, gpfn=0x100, pages=2)
    it.w.do(1, _C.UNMAP_DEVICE_GPA_PAGES, **take_out)
    assert it.give(0x100) == HvStatus.ACCESS_DENIED
    it.w.do(1, _C.DETACH_DEVICE_DOMAIN, **detach)
    assert it.give(0x100) == HvStatus.SUCCESS


def test_a_device_is_not_attached_with_pages_that_its_domain_would_refuse() -> None:
    it = Driven(attached=False)
    assert it.give(0x100) == HvStatus.SUCCESS
    attach = {"partition": it.guest, "domain": DOMAIN, "device": it.driver}
    assert it.w.status(1, _C.ATTACH_DEVICE_DOMAIN, **attach) == HvStatus.OBJECT_IN_USE
    it.list_slot(0x100, READ)
    assert it.w.status(1, _C.ATTACH_DEVICE_DOMAIN, **attach) == HvStatus.OBJECT_IN_USE
    it.list_slot(0x100)
    it.attach()


def test_a_slot_that_its_owner_gives_back_leaves_the_domain() -> None:
    it = Driven()
    it.list_slot(0x100)
    before = it.w.do(1, _C.GET_MEMORY_BALANCE, partition=it.guest)["in_use"]
    it.w.do(1, _C.UNMAP_GPA_PAGES, partition=it.guest, gpfn=0x100, pages=2)
    assert it.w.do(1, _C.GET_MEMORY_BALANCE, partition=it.guest)["in_use"] == before - 3
    it.w.do(1, _C.MAP_GPA_PAGES, partition=it.guest, gpfn=0x100, pages=2, flags=NEW)
    assert it.give(0x100) == HvStatus.ACCESS_DENIED  # the same place, other pages


@pytest.mark.parametrize("its_record_is_there", [True, False])
def test_a_device_whose_domain_is_gone_gets_nothing_until_it_is_detached(its_record_is_there: bool) -> None:
    it = Driven()
    it.list_slot(0x100)
    assert it.give(0x100) == HvStatus.SUCCESS
    delete = {"partition": it.guest, "domain": DOMAIN}
    assert it.w.status(1, _C.DELETE_DEVICE_DOMAIN, **delete) == HvStatus.OBJECT_IN_USE
    it.w.do(1, _C.FINALIZE_PARTITION, partition=it.guest)
    assert not it.w.machine.partitions[it.driver].gpa.entries
    it.w.do(1, _C.MAP_GPA_PAGES, gpfn=0x700, pages=1, flags=NEW)
    assert it.give(0x700, READ, source=1) == HvStatus.ACCESS_DENIED
    detach = {"device": it.driver}
    assert it.w.status(1, _C.DETACH_DEVICE_DOMAIN, **detach) == HvStatus.INVALID_DEVICE_STATE
    if its_record_is_there:
        detach["partition"] = it.guest
    else:
        it.w.do(1, _C.DELETE_PARTITION, partition=it.guest)
    it.w.do(1, _C.DETACH_DEVICE_DOMAIN, **detach)
    assert it.give(0x700, READ, source=1) == HvStatus.SUCCESS


def test_a_device_that_dies_leaves_its_domain_free_to_be_deleted() -> None:
    it = Driven()
    it.w.do(1, _C.FINALIZE_PARTITION, partition=it.driver)
    it.w.do(1, _C.DELETE_DEVICE_DOMAIN, partition=it.guest, domain=DOMAIN)


@pytest.mark.parametrize("started", [True, False])
def test_a_dead_device_is_not_attached_and_an_unborn_one_leaves_when_it_is_deleted(started: bool) -> None:
    it = Driven(attached=False)
    device = it.w.do(1, _C.CREATE_PARTITION)["partition"]
    if started:
        it.w.do(1, _C.DEPOSIT_MEMORY, partition=device, pages=10)
        it.w.do(1, _C.INITIALIZE_PARTITION, partition=device)
        it.w.do(1, _C.FINALIZE_PARTITION, partition=device)
    status = it.w.status(1, _C.ATTACH_DEVICE_DOMAIN, partition=it.guest, domain=DOMAIN, device=device)
    assert status == (HvStatus.INVALID_DEVICE_STATE if started else HvStatus.SUCCESS)
    it.w.do(1, _C.DELETE_PARTITION, partition=device)
    it.w.do(1, _C.DELETE_DEVICE_DOMAIN, partition=it.guest, domain=DOMAIN)


def test_nobody_attaches_what_is_not_below_it() -> None:
    it = Driven(attached=False)
    own = {"domain": 9}
    it.w.do(it.driver, _C.CREATE_DEVICE_DOMAIN, **own)
    for device in (1, it.guest, it.driver, 99):
        status = it.w.status(it.driver, _C.ATTACH_DEVICE_DOMAIN, **own, device=device)
        assert status == HvStatus.INVALID_DEVICE_ID


def test_sparse_slots_are_all_mapped_or_none() -> None:
    it = Driven(attached=False)
    sparse = {"partition": it.driver, "flags": READ_WRITE, "source_partition": it.guest}
    for pages, status in (
        ([[0x900, 0x100], [0x900, 0x200]], HvStatus.OBJECT_IN_USE),
        ([[0x900, 0x100], [0xA00, 0x300]], HvStatus.INVALID_PARAMETER),
        ([[0x900, 0x100], [0, 0x101]], HvStatus.INVALID_PARAMETER),  # its slot would begin below 0
        ([[0x900, 0x101], [0xA00, 0x200]], HvStatus.SUCCESS),
    ):
        assert it.w.status(1, _C.MAP_SPARSE_GPA_PAGES, **sparse, pages=pages) == status, pages
    entries = it.w.machine.partitions[it.driver].gpa.entries
    assert {entry.gpfn: entry.pages for entry in entries.values()} == {0x8FF: 2, 0xA00: 2}


@pytest.mark.parametrize("where", [0, 1, PAGE_BYTES - 3])
def test_a_parent_reads_and_writes_what_its_child_has(where: int) -> None:
    it = Driven(attached=False)
    gpa = 0x101 * PAGE_BYTES + where
    of_guest = {"partition": it.guest, "vp": 0, "gpa": gpa}
    assert it.w.do(1, _C.WRITE_GPA, **of_guest, data=b"abc") == {"result": AccessGpaResult.SUCCESS}
    read = it.w.do(1, _C.READ_GPA, **of_guest, size=3)
    assert read == {"result": AccessGpaResult.SUCCESS, "data": b"abc"}
    # through another's mapping it is the same memory, with the mapping's rights
    assert it.give(0x100, READ) == HvStatus.SUCCESS
    of_driver = of_guest | {"partition": it.driver}
    assert it.w.do(1, _C.READ_GPA, **of_driver, size=3)["data"] == b"abc"
    refused = it.w.do(1, _C.WRITE_GPA, **of_driver, data=b"x")
    assert refused == {"result": AccessGpaResult.WRITE_INTERCEPT}
    hole = of_guest | {"gpa": 0x900 * PAGE_BYTES}
    assert it.w.do(1, _C.READ_GPA, **hole, size=1) == {"result": AccessGpaResult.UNMAPPED, "data": b""}
    assert it.w.status(1, _C.READ_GPA, **of_guest, size=17) == HvStatus.INVALID_PARAMETER


def test_nothing_is_mapped_beyond_a_partitions_address_width() -> None:
    w = World()
    child = w.do(1, _C.CREATE_PARTITION)["partition"]
    w.do(1, _C.SET_PARTITION_PROPERTY, partition=child, property=0x60006, value=32)
    w.do(1, _C.DEPOSIT_MEMORY, partition=child, pages=40)
    w.do(1, _C.INITIALIZE_PARTITION, partition=child)
    end = 1 << 32 - 12
    new = {"partition": child, "pages": 2, "flags": NEW}
    assert w.status(1, _C.MAP_GPA_PAGES, **new, gpfn=end - 1) == HvStatus.INVALID_PARAMETER
    w.do(1, _C.MAP_GPA_PAGES, **new, gpfn=end - 2)
    w.do(1, _C.MAP_GPA_PAGES, gpfn=end, pages=2, flags=NEW)
    source = {"source_partition": 1, "source_gpfn": end}
    assert (
        w.status(1, _C.MAP_GPA_PAGES, **(new | {"flags": READ}), gpfn=end - 1, **source)
        == HvStatus.INVALID_PARAMETER
    )
