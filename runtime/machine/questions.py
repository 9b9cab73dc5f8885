"""Questions on a packet link: each has a number, and an answer that carries it."""

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

import trio

from runtime import codec
from runtime.machine.firmware import LinkMessage, PacketLink


class RequestRefused(Exception):
    """Broker or root will not do what was asked; the text says why."""


class Questions:
    """To any number of links."""

    def __init__(self) -> None:
        self._waiting: dict[int, trio.MemorySendChannel[LinkMessage]] = {}
        self._last = 0

    async def ask(
        self, link: PacketLink, verb: str, values: Mapping[str, object], fds: Sequence[int] = ()
    ) -> Mapping[str, Any]:
        """Until it is answered. Raises RequestRefused; what `PacketLink.send` raises."""
        answer = await self.ask_for_descriptors(link, verb, values, fds)
        codec.close_all(answer.fds)
        return answer.values

    async def ask_for_descriptors(
        self, link: PacketLink, verb: str, values: Mapping[str, object], fds: Sequence[int] = ()
    ) -> LinkMessage:
        """As `ask`, and with what came along, which is the caller's."""
        self._last += 1
        number = self._last
        send, receive = trio.open_memory_channel[LinkMessage](1)
        self._waiting[number] = send
        try:
            await link.send(verb, {"request": number, **values}, fds)
            answer = await receive.receive()
        except BaseException:
            with contextlib.suppress(trio.WouldBlock, trio.EndOfChannel):  # it came, and nobody took it
                codec.close_all(receive.receive_nowait().fds)
            raise
        finally:
            del self._waiting[number]
        if answer.verb == "error":
            codec.close_all(answer.fds)
            raise RequestRefused(str(answer.values.get("reason")))
        return answer

    def answered(self, message: LinkMessage) -> None:
        """Takes its descriptors over. One that nobody waits for any more is dropped."""
        waiting = self._waiting.get(message.values.get("request", 0))
        if waiting is not None:
            with contextlib.suppress(trio.WouldBlock):
                waiting.send_nowait(message)
                return
        codec.close_all(message.fds)
