"""The hypervisor: partitions, their memory, ports and interrupt lines. It knows nothing of devices or VMBus.

`dispatch.Hypervisor` decides and does no I/O; `broker.Broker` owns the sockets, processes and memory and
carries the decisions out. Nothing of partitions/ and no third-party package but msgpack is loaded here.
"""
