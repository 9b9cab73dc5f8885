"""What `Partition.open_serial` gives, whatever is between the guest and the driver."""

from typing import Protocol


class Line(Protocol):
    """One thread may write while another reads. SerialClosedError: the line is gone, for good."""

    def write(self, data: bytes, timeout_s: float | None = None) -> int:
        """How many bytes were taken: all, unless `timeout_s` passed while nobody took what was written before."""

    def flush(self, timeout_s: float | None = None) -> bool:
        """Until the driver has taken all that was written. False: `timeout_s` passed first."""

    def read(self, limit: int, timeout_s: float | None = None) -> bytes:
        """What is there, at most `limit` bytes; waits for the first. Empty: `timeout_s` is over, or the line ended."""

    def statistics(self) -> dict[str, int]: ...
