"""What `partvisor new` writes: files with @NAME@ and @CLASS@ in them, data of this package."""
