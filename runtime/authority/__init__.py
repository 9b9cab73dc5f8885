"""Who of a machine's processes holds what: as its config grants it, and as /proc shows it."""
