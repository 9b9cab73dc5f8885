"""The deterministic mode: a whole machine in one thread, on a virtual clock, from one seed.

What runs here is the real thing wherever it decides something: the hypervisor's state machine, VMBus on both sides with
all that the root does for a guest, rings in shared memory, the storage server, its replay, the verified load. What is
made up is what a host does for them: processes, their turns and their deaths, doorbells, and how long things take.
"""
