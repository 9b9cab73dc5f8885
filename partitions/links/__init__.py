"""Two guests that talk to each other: through the root's switch, or by a channel that only the two of them touch."""
