"""Stream sockets between partitions, and with programs of the host: Hyper-V's hv_sock."""
