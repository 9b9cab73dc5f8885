"""A device that answers each request with its own bytes: what an exchange costs without a device behind it."""
