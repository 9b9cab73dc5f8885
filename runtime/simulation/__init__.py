"""The hypervisor's state machine under a virtual clock: hundreds of partitions, seeded schedules, seeded faults.

A run is a list of actions that a seed chose. It is data: it replays exactly, and one that fails shrinks.
"""
