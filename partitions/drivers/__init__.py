"""Drivers outside the root: their processes, and the stack's end of each."""
