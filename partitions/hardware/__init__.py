"""Errors of real devices: who counts them, what is done about them, and the records that are kept of them."""
