"""A module for each protocol, with a target for each side of it that listens."""
