"""What a ChannelHost says of channels that no thread of this process serves: a driver partition does, or nobody."""


class UnservedChannels:
    """The part of a ChannelHost that is about serving."""

    def waits_to_be_served(self, relid: int) -> bool:
        return False

    def was_executing(self, relid: int) -> bool:
        raise LookupError(relid)

    def replay(self, relid: int) -> bool:
        raise LookupError(relid)

    def serve(self, relid: int) -> None:
        raise LookupError(relid)

    def find_stuck(self, stuck_ms: int) -> None:
        return None

    def is_busy(self, relid: int) -> bool:
        return False

    def workers(self) -> tuple[()]:
        return ()
