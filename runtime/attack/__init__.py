"""A hostile guest beside working ones: what it attacks, how that is run, and what must have come of it."""
