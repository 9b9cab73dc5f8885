"""Who may call what: one table with a rule for each hypercall. `dispatch` applies it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from runtime.abi import HypercallCode, PartitionState, Privilege
from runtime.hypervisor import (
    device_domains,
    direct_delivery,
    endpoints,
    gpa,
    guest_memory,
    heartbeat,
    intercepts,
    interrupts,
    partitions,
    pools,
    ports,
    processors,
    properties,
    registers,
    statistics,
    synic,
    vps,
)
from runtime.hypervisor.replies import Reply

_S = PartitionState
_ACTIVE: Final = frozenset({_S.ACTIVE})
_EARLY: Final = frozenset({_S.UNINITIALIZED, _S.ACTIVE})
_ANY: Final = frozenset(_S)


@dataclass(frozen=True, slots=True)
class Rule:
    """One row: who may make the call on whom. None: never, whatever the privileges."""

    handler: Callable[..., Reply]
    on_self: Privilege | None  # privileges needed when the target is the caller
    on_child: Privilege | None = None  # when it is a child of the caller
    on_deeper: Privilege | None = None  # when it is further below
    states: frozenset[PartitionState] = _ACTIVE  # of the target
    takes_files: bool = False


_NONE: Final = Privilege(0)
_CREATE: Final = Privilege.CREATE_PARTITIONS
_C = HypercallCode
_P = Privilege

RULES: Final[Mapping[HypercallCode, Rule]] = MappingProxyType(
    {
        # lifecycle: of one's own children, and deeper where only looking
        _C.CREATE_PARTITION: Rule(partitions.create_partition, _CREATE),
        _C.INITIALIZE_PARTITION: Rule(
            partitions.initialize_partition, None, _CREATE, states=frozenset({_S.UNINITIALIZED})
        ),
        _C.FINALIZE_PARTITION: Rule(
            partitions.finalize_partition, None, _CREATE, states=frozenset({_S.ACTIVE, _S.FINALIZING})
        ),
        _C.DELETE_PARTITION: Rule(
            partitions.delete_partition, None, _CREATE, states=frozenset({_S.UNINITIALIZED, _S.FINALIZED})
        ),
        _C.GET_PARTITION_ID: Rule(partitions.get_partition_id, _P.ACCESS_PARTITION_ID),
        _C.GET_NEXT_CHILD_PARTITION: Rule(
            partitions.get_next_child_partition, _CREATE, _CREATE, _CREATE, states=_ANY
        ),
        _C.GET_PARTITION_PROPERTY: Rule(
            properties.get_partition_property, _NONE, _CREATE, _CREATE, states=_ANY
        ),
        _C.SET_PARTITION_PROPERTY: Rule(properties.set_partition_property, None, _CREATE, states=_EARLY),
        _C.GET_PARTITION_PROPERTY_EX: Rule(
            properties.get_partition_property_ex, _NONE, _CREATE, _CREATE, states=_ANY
        ),
        _C.SET_PARTITION_PROPERTY_EX: Rule(
            properties.set_partition_property_ex, None, _CREATE, states=_EARLY, takes_files=True
        ),
        _C.GET_BIRTH: Rule(partitions.get_birth, _NONE),
        _C.WATCH_CHILDREN: Rule(partitions.watch_children, _CREATE),
        _C.HEARTBEAT: Rule(heartbeat.heartbeat, _NONE),
        # memory: pages move between parent and child only
        _C.DEPOSIT_MEMORY: Rule(pools.deposit_memory, None, _CREATE, states=_EARLY),
        _C.WITHDRAW_MEMORY: Rule(pools.withdraw_memory, None, _CREATE, states=_ANY),
        _C.GET_MEMORY_BALANCE: Rule(
            pools.get_memory_balance, _P.ACCESS_MEMORY_POOL, _CREATE, _CREATE, states=_ANY
        ),
        _C.MAP_GPA_PAGES: Rule(gpa.map_gpa_pages, _P.ACCESS_MEMORY_POOL, _CREATE, _CREATE),
        _C.MAP_SPARSE_GPA_PAGES: Rule(gpa.map_sparse_gpa_pages, _P.ACCESS_MEMORY_POOL, _CREATE, _CREATE),
        _C.UNMAP_GPA_PAGES: Rule(gpa.unmap_gpa_pages, _P.ACCESS_MEMORY_POOL, _CREATE, _CREATE),
        _C.CLAIM_GPA_PAGES: Rule(gpa.claim_gpa_pages, _NONE),
        # virtual processors
        _C.CREATE_VP: Rule(vps.create_vp, _CREATE, _CREATE),
        _C.DELETE_VP: Rule(vps.delete_vp, _CREATE, _CREATE),
        _C.START_VIRTUAL_PROCESSOR: Rule(vps.start_virtual_processor, _P.START_VIRTUAL_PROCESSOR, _CREATE),
        _C.LOAD_DRIVER: Rule(vps.load_driver, None, _CREATE),
        # of one's own: each register has a privilege
        _C.GET_VP_REGISTERS: Rule(registers.get_vp_registers, _NONE, _CREATE, _CREATE),
        _C.SET_VP_REGISTERS: Rule(registers.set_vp_registers, _NONE, _CREATE, _CREATE),
        _C.ASSERT_VIRTUAL_INTERRUPT: Rule(interrupts.assert_virtual_interrupt, None, _CREATE),
        _C.CLAIM_OVERLAY_PAGE: Rule(interrupts.claim_overlay_page, _NONE),
        # intercepts: a parent's of its child; an access is anyone's own
        _C.INSTALL_INTERCEPT: Rule(intercepts.install_intercept, None, _CREATE),
        _C.REGISTER_INTERCEPT_RESULT: Rule(intercepts.register_intercept_result, None, _CREATE),
        _C.ACCESS_PORT: Rule(intercepts.access_port, _NONE),
        _C.ACCESS_MEMORY: Rule(intercepts.access_memory, _NONE),
        # ports: of one's own, or made for anyone below
        _C.CREATE_PORT: Rule(ports.create_port, _P.CREATE_PORT, _P.CREATE_PORT, _P.CREATE_PORT),
        _C.DELETE_PORT: Rule(ports.delete_port, _P.CREATE_PORT, _P.CREATE_PORT, _P.CREATE_PORT),
        _C.GET_PORT_PROPERTY: Rule(ports.get_port_property, _P.CREATE_PORT, _P.CREATE_PORT, _P.CREATE_PORT),
        _C.SET_PORT_PROPERTY: Rule(ports.set_port_property, _P.CREATE_PORT, _P.CREATE_PORT, _P.CREATE_PORT),
        _C.GET_PORT_COUNTS: Rule(ports.get_port_counts, _P.CREATE_PORT, _P.CREATE_PORT, _P.CREATE_PORT),
        _C.CONNECT_PORT: Rule(ports.connect_port, _P.CONNECT_PORT, _P.CONNECT_PORT, _P.CONNECT_PORT),
        _C.DISCONNECT_PORT: Rule(ports.disconnect_port, _P.CONNECT_PORT, _P.CONNECT_PORT, _P.CONNECT_PORT),
        _C.POST_MESSAGE: Rule(synic.post_message, _P.POST_MESSAGES),
        _C.SIGNAL_EVENT: Rule(synic.signal_event, _P.SIGNAL_EVENTS),
        _C.CLAIM_DOORBELL: Rule(ports.claim_doorbell, _P.SIGNAL_EVENTS),
        _C.CREATE_PORT_DEPRECATED: Rule(ports.create_port, _P.CREATE_PORT, _P.CREATE_PORT, _P.CREATE_PORT),
        _C.CONNECT_PORT_DEPRECATED: Rule(
            ports.connect_port_deprecated, _P.CONNECT_PORT, _P.CONNECT_PORT, _P.CONNECT_PORT
        ),
        _C.CLAIM_ENDPOINT: Rule(endpoints.claim_endpoint, _P.SIGNAL_EVENTS),
        # what a parent does to its children's memory and VPs, in the place of their devices
        _C.READ_GPA: Rule(guest_memory.read_gpa, None, _CREATE, _CREATE),
        _C.WRITE_GPA: Rule(guest_memory.write_gpa, None, _CREATE, _CREATE),
        _C.SIGNAL_EVENT_DIRECT: Rule(direct_delivery.signal_event_direct, None, _CREATE, _CREATE),
        _C.POST_MESSAGE_DIRECT: Rule(direct_delivery.post_message_direct, None, _CREATE, _CREATE),
        # which pages a device may touch: whoever could map them into its driver says so
        _C.CREATE_DEVICE_DOMAIN: Rule(device_domains.create_device_domain, _CREATE, _CREATE, _CREATE),
        _C.ATTACH_DEVICE_DOMAIN: Rule(device_domains.attach_device_domain, _CREATE, _CREATE, _CREATE),
        _C.MAP_DEVICE_GPA_PAGES: Rule(device_domains.map_device_gpa_pages, _CREATE, _CREATE, _CREATE),
        _C.UNMAP_DEVICE_GPA_PAGES: Rule(device_domains.unmap_device_gpa_pages, _CREATE, _CREATE, _CREATE),
        _C.DETACH_DEVICE_DOMAIN: Rule(
            device_domains.detach_device_domain, _CREATE, _CREATE, _CREATE, states=_ANY
        ),
        _C.DELETE_DEVICE_DOMAIN: Rule(device_domains.delete_device_domain, _CREATE, _CREATE, _CREATE),
        # processors and statistics
        _C.GET_LOGICAL_PROCESSOR_RUN_TIME: Rule(processors.get_logical_processor_run_time, _P.CPU_MANAGEMENT),
        _C.NOTIFY_LONG_SPIN_WAIT: Rule(processors.notify_long_spin_wait, _NONE),
        _C.SEND_SYNTHETIC_CLUSTER_IPI: Rule(processors.send_synthetic_cluster_ipi, _NONE),
        _C.GET_VP_INDEX_FROM_APIC_ID: Rule(processors.get_vp_index_from_apic_id, _NONE, _CREATE, _CREATE),
        _C.QUERY_EXTENDED_CAPABILITIES: Rule(processors.query_extended_capabilities, _P.EXTENDED_HYPERCALLS),
        _C.MAP_STATS_PAGE: Rule(
            statistics.map_stats_page,
            _P.ACCESS_STATS_CALLS,
            _P.ACCESS_STATS_CALLS,
            _P.ACCESS_STATS_CALLS,
            states=_ANY,
        ),
        _C.UNMAP_STATS_PAGE: Rule(
            statistics.unmap_stats_page,
            _P.ACCESS_STATS_CALLS,
            _P.ACCESS_STATS_CALLS,
            _P.ACCESS_STATS_CALLS,
            states=_ANY,
        ),
    }
)

assert set(RULES) == set(HypercallCode)
