"""What a parent does for its children: buses, channels, memory, saved state."""
