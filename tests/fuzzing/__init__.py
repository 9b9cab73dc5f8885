"""A fuzz target for each side of each protocol: bytes in, and nothing but typed errors out."""
