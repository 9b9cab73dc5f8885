"""All attacks by their names, which are those of runtime/attack/catalogue.py."""

from collections.abc import Mapping
from typing import Final

from partitions.guests.hostile import (
    descriptors,
    hypercalls,
    memory,
    messages,
    ports,
    processes,
    requests,
    rings,
    servers,
)
from partitions.guests.hostile.scene import AttackFunction

_ALL: Final[tuple[AttackFunction, ...]] = (
    rings.write_index_past_end,
    rings.read_index_past_end,
    rings.index_changed_while_read,
    rings.packet_of_nonsense,
    rings.packet_changed_while_read,
    rings.replayed_packets,
    requests.garbage_packets,
    requests.duplicate_ids,
    requests.foreign_pages,
    requests.impossible_requests,
    requests.false_lengths,
    requests.frames_in_others_names,
    requests.unread_answers,
    requests.doorbell_storm,
    requests.stuffed_doorbell,
    servers.garbage_to_a_server,
    servers.caller_that_does_not_listen,
    hypercalls.forbidden_calls,
    hypercalls.garbage_calls,
    hypercalls.garbage_bytes,
    hypercalls.forged_ids,
    hypercalls.parents_deposit,
    hypercalls.memory_greed,
    memory.shrunk_memory,
    messages.garbage_messages,
    messages.forged_messages,
    ports.accesses_to_any_port,
    ports.interrupted_accesses,
    ports.requests_forged_in_the_page,
    descriptors.descriptors_of_others,
    descriptors.management_socket,
    descriptors.files_of_others,
    processes.signals_to_others,
    processes.new_processes,
    processes.more_than_its_limits,
)
ATTACKS: Final[Mapping[str, AttackFunction]] = {
    function.__name__.replace("_", "-"): function for function in _ALL
}
