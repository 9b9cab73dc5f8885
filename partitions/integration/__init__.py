"""Integration services: what a host asks of a guest's operating system. Wire formats, state machines, both ends."""
