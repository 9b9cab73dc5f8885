"""The other guest of a pair: answers the one that runs `ladder_load`, over links and switches, as it is told.

args: pair = [names], the same as the other's. Files: `orders`, a line of JSON each with the "device" to serve;
`answers`, where it says how many requests came until the other said that it is over.
"""

import contextlib
from typing import Any

from bus.native import Channel
from partitions.child import Partition
from partitions.echo.driver import ECHO_KEY
from partitions.guests.ladder_load import OVER, Orders
from partitions.links.peer import borrow_link, open_switch
from runtime.measure.exchanges import make_answer


def main(partition: Partition) -> None:
    """Until it is told to end."""
    orders = Orders(partition)
    with contextlib.ExitStack() as opened:
        channels: dict[str, Channel] = {}
        for name in partition.args["pair"]:
            opening = open_switch if name.startswith("switch") else borrow_link
            channels[name] = opened.enter_context(opening(partition, name))
        while True:
            order = orders.next()
            try:
                orders.answer(_serve(channels[order["device"]]))
            except Exception as error:  # whatever it is, the one who asked wants to know
                orders.refuse(error)


def _serve(channel: Channel) -> dict[str, Any]:
    answer, reply, identity, count = make_answer(ECHO_KEY), None, 0, 0
    while True:
        packet = channel.reply_and_receive(reply, identity)
        assert packet is not None  # no timeout was given
        _, _, identity, request = packet
        if request == OVER:
            channel.release()
            return {"served": count}
        reply = answer(request)
        count += 1
