"""The end of a device, for whoever serves it."""


class DeviceGone(Exception):
    """It is served no more, for good: no service is opened on it again. The text says why, in one line."""
