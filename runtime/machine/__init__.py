"""One running machine: its folder, its platform process, its management."""
