"""Devices of a PC, for partitions that know of no hypervisor: state machines behind ports."""
