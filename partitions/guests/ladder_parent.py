"""A partition with one child that measures: passes its disk on to it, and answers its messages.

The messages travel as VMBus's control messages do, through the hypervisor and the SynIC of both; the ports are made
here, because only a parent may connect its child.
"""

import contextlib
import threading
import time
from typing import Final

from partitions.child import Partition
from partitions.echo.driver import ECHO_KEY
from partitions.guests import parent
from runtime.abi import HypercallError, PortType
from runtime.measure.exchanges import make_answer

MESSAGE_TYPE: Final = 0x4C41
TO_PARENT: Final = 0x100  # the child's connection, and our port
TO_CHILD: Final = 0x101  # our connection, and the child's port
CHILD_SINT: Final = 5
CHILD_VP: Final = 1  # on both sides: VP 0 is the bus's
_POLL_S: Final = 0.02


def main(partition: Partition) -> int:
    """As partitions.guests.parent, beside the messages."""
    threading.Thread(target=_answer, args=(partition,), name="messages", daemon=True).start()
    return parent.main(partition)


def _answer(partition: Partition) -> None:
    call, vp = partition.hypercalls, partition.vps[CHILD_VP]
    vp.enable((CHILD_SINT,))
    child = 0
    while not child:
        time.sleep(_POLL_S)
        with contextlib.suppress(HypercallError):
            child = next(iter(call.children()), 0)
    while not _connect(partition, child):
        time.sleep(_POLL_S)  # it has not been started yet
    answer = make_answer(ECHO_KEY)
    while vp.wait():
        for _, _, request in vp.take_messages(CHILD_SINT):
            if not request:  # a new measurement, which counts from the beginning
                answer = make_answer(ECHO_KEY)
            call.post_message(TO_CHILD, MESSAGE_TYPE, answer(request) if request else b"")


def _connect(partition: Partition, child: int) -> bool:
    call = partition.hypercalls
    try:
        call.create_port(TO_PARENT, child, PortType.MESSAGE, CHILD_SINT, CHILD_VP)
        call.connect_port(TO_PARENT, partition.id, TO_PARENT, partition=child)
        call.create_port(TO_CHILD, partition.id, PortType.MESSAGE, CHILD_SINT, CHILD_VP, partition=child)
        call.connect_port(TO_CHILD, child, TO_CHILD)
    except HypercallError:
        for port, owner in ((TO_PARENT, partition.id), (TO_CHILD, child)):
            with contextlib.suppress(HypercallError):
                call.delete_port(port, partition=owner)
        return False
    return True
