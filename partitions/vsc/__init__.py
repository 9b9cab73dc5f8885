"""A guest's ends: its bus, its channels, its connections."""
