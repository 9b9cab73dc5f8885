"""Sub-channels, as the bus of a guest has them: offered when the guest has asked on their primary, gone when it closes.

Pure functions on the channel server; what they return is saved and carried out as one with what led to it, so a
successor never finds a sub-channel whose primary is on its way out.
"""

from bus.channel_actions import Action, CloseChannel
from bus.channel_server import ChannelServer
from bus.channel_states import ChannelState


def missing(server: ChannelServer, primary: int, count: int) -> list[int]:
    """Indexes that are to be offered, so that there are `count`. None where the primary is not open any more."""
    if server.channel_state(primary) is not ChannelState.OPEN:
        return []
    there = server.sub_channels(primary)
    return [index for index in range(1, count + 1) if index not in there]


def revoke_with_sub_channels(server: ChannelServer, primary: int) -> list[Action]:
    """They go first."""
    relids = [*server.sub_channels(primary).values(), primary]
    return [step for relid in relids for step in server.revoke(relid)]


def revoke_orphans(server: ChannelServer, steps: list[Action]) -> list[Action]:
    """The sub-channels of what these steps close: they belonged to that opening."""
    closing = [step.relid for step in steps if isinstance(step, CloseChannel)]
    orphans = [sub for relid in closing for sub in server.sub_channels(relid).values()]
    return [step for relid in orphans for step in server.revoke(relid)]
