"""A device that answers each request with its own bytes: what a VMBus exchange costs without a device behind it."""
