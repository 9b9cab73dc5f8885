"""One driver misbehaves, under each architecture: who dies with it, who waits, whose data is wrong, who comes back."""
