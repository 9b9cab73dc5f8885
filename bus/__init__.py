"""The wire: memory slots, rings, packets, SynIC pages and channel state machines. Imports nothing of ours."""
