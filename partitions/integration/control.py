"""What the machine's operator asks of guests, through their integration services. In the stack's trio task.

| service | order | result |
|---|---|---|
| shutdown | {reason, force} of a guest, or of all for "" | {accepted: [...]}: who has said that it will |
| kvp | {operation: get, set, delete, list; pool; key; value} | {pool, key, value}, or {pairs: [...]} |
| vss | {operation: freeze, thaw} | {} |

A freeze ends by itself after FREEZE_MS_MAX, in the guest a little later: nobody's death leaves it frozen. It is the
guest that says, when it is thawed, whether it was still frozen.
"""

import contextlib
from collections.abc import Callable, Mapping
from typing import Any, Final

import trio

from bus.packets import PacketError
from partitions.integration.bodies import (
    NO_AUTO_RECOVERY,
    Kvp,
    KvpOperation,
    Pool,
    Shutdown,
    ShutdownFlags,
    Snapshot,
    SnapshotOperation,
)
from partitions.integration.device import IntegrationDevice
from partitions.integration.host_session import Answer, NotNow
from partitions.integration.services import HEARTBEAT, KEY_VALUE, SHUTDOWN, SNAPSHOT, IcService
from partitions.integration.vsp import IcVsp
from partitions.integration.wire import IcError, Status

ANSWER_MS_MAX: Final = 2_000  # a guest that does not answer a request by then has not
QUIESCE_MS_MAX: Final = 5_000  # the same, of a freeze: what is being written has to end
FREEZE_MS_MAX: Final = 10_000  # a frozen guest is thawed after so long, whoever froze it
PAIRS_MAX: Final = 1_024  # of one pool, that are listed
SHUTDOWN_REASON: Final = 0x8000_0000  # planned
_TRIES_PAUSE_S: Final = 0.02
_POOLS: Final = {pool.name.lower(): pool for pool in Pool}
_FOUND_IN: Final = (Pool.EXTERNAL, Pool.GUEST, Pool.AUTO)  # where a key is looked for, if no pool is named


class IntegrationRefused(Exception):
    """It can't be done, or the guest did not do it. One line for the user."""


class IntegrationControl:
    """`partition_of(name)`: its id; KeyError. `names`: of all that run."""

    def __init__(
        self,
        devices: Mapping[str, object],
        partition_of: Callable[[str], int],
        names: Callable[[], list[str]],
        nursery: trio.Nursery,
    ) -> None:
        self._devices = {name: one for name, one in devices.items() if isinstance(one, IntegrationDevice)}
        self._partition_of, self._names, self._nursery = partition_of, names, nursery
        self._freezes: dict[str, int] = {}  # how many there were, by guest: which one a timer is for

    async def perform(self, service: str, name: str, order: Mapping[str, Any]) -> Mapping[str, Any]:
        """Raises IntegrationRefused. KeyError, TypeError, ValueError: an order that is none."""
        match service:
            case "shutdown":
                return {"accepted": await self._shut_down([name] if name else self._names(), order)}
            case "kvp":
                return await self._key_value(name, order)
            case "vss":
                return await (self._freeze(name) if order["operation"] == "freeze" else self._thaw(name))
        raise IntegrationRefused(f"there is no service {service[:40]!r}")

    def heartbeat_of(self, name: str) -> str | None:
        """None: it has no integration services."""
        device = self._devices.get(HEARTBEAT.device)
        try:
            partition = self._partition_of(name)
        except KeyError:
            return None
        vsp = device.of(partition) if device is not None else None
        return vsp.heartbeat if vsp is not None else None

    # -- one request, one answer

    def _vsp(self, service: IcService, name: str) -> IcVsp:
        device = self._devices.get(service.device)
        try:
            vsp = device.of(self._partition_of(name)) if device is not None else None
        except KeyError:
            raise IntegrationRefused(f"no partition {name[:80]!r} of the root's own runs") from None
        if vsp is None:
            raise IntegrationRefused(
                f"{name} does not use its {service.name} service: give it integration = true, and have its"
                " program take partition.integration"
            )
        return vsp

    async def _ask(
        self, service: IcService, name: str, body: Callable[[IcVsp], bytes], ms_max: int = ANSWER_MS_MAX
    ) -> Answer:
        """One that is under way is waited for."""
        vsp = self._vsp(service, name)
        token, answered, answers = trio.lowlevel.current_trio_token(), trio.Event(), list[Answer | None]()

        def done(answer: Answer | None) -> None:
            answers.append(answer)
            with contextlib.suppress(trio.RunFinishedError):
                token.run_sync_soon(answered.set)

        try:
            with trio.fail_after(ms_max / 1000):
                while True:
                    try:
                        vsp.ask(body, done)
                        break
                    except NotNow:
                        await trio.sleep(_TRIES_PAUSE_S)
                        vsp = self._vsp(service, name)  # it may have opened its channel again
                try:
                    await answered.wait()
                except BaseException:
                    vsp.give_up()
                    raise
        except trio.TooSlowError:
            raise IntegrationRefused(
                f"{name}: its {service.name} service does not answer within {ms_max} ms"
            ) from None
        except (PacketError, ValueError) as error:
            raise IntegrationRefused(str(error)) from error
        if (answer := answers[0]) is None:
            raise IntegrationRefused(f"{name} has closed its {service.name} service")
        return answer

    # -- shutdown

    async def _shut_down(self, names: list[str], order: Mapping[str, Any]) -> list[str]:
        accepted: list[str] = []
        flags = ShutdownFlags.FORCE if order.get("force") else ShutdownFlags(0)
        request = Shutdown(
            SHUTDOWN_REASON, int(order.get("timeout_s", 0)), flags, str(order.get("reason", ""))
        )

        async def one(name: str) -> None:
            try:
                answer = await self._ask(SHUTDOWN, name, lambda vsp: request.encode())
            except IntegrationRefused:
                return  # it has not the service, or does not answer
            if answer.status == Status.OK:
                accepted.append(name)

        async with trio.open_nursery() as nursery:
            for name in names:
                nursery.start_soon(one, name)
        return sorted(accepted)

    # -- key-value pairs

    async def _key_value(self, name: str, order: Mapping[str, Any]) -> Mapping[str, Any]:
        operation, pool = str(order["operation"]), order.get("pool")
        if pool is not None and pool not in _POOLS:
            raise IntegrationRefused(f"pool {str(pool)[:40]!r}; there are {', '.join(_POOLS)}")
        key, value = str(order.get("key", "")), str(order.get("value", ""))
        match operation:
            case "list":
                pools = _FOUND_IN if pool is None else (_POOLS[pool],)
                return {"pairs": [pair for each in pools for pair in await self._list(name, each)]}
            case "get":
                for each in _FOUND_IN if pool is None else (_POOLS[pool],):
                    found = await self._exchange(name, Kvp(KvpOperation.GET, each, key))
                    if found is not None:
                        return {"pool": each.name.lower(), "key": key, "value": found.value}
                raise IntegrationRefused(f"{name} has no key {key[:80]!r}")
            case "set" | "delete":
                each = _POOLS[pool or "external"]
                code = KvpOperation.SET if operation == "set" else KvpOperation.DELETE
                if await self._exchange(name, Kvp(code, each, key, value)) is None:
                    raise IntegrationRefused(f"{name} has no key {key[:80]!r}")
                return {"pool": each.name.lower(), "key": key, "value": value}
        raise IntegrationRefused(f"operation {operation[:40]!r}; there are get, set, delete and list")

    async def _list(self, name: str, pool: Pool) -> list[Mapping[str, Any]]:
        pairs: list[Mapping[str, Any]] = []
        for index in range(PAIRS_MAX):
            found = await self._exchange(name, Kvp(KvpOperation.ENUMERATE, pool, index=index))
            if found is None:
                break
            pairs.append({"pool": pool.name.lower(), "key": found.key, "value": found.value})
        return pairs

    async def _exchange(self, name: str, request: Kvp) -> Kvp | None:
        """None: there is no such key, or no more."""
        answer = await self._ask(KEY_VALUE, name, lambda vsp: request.encode())
        if answer.status in (Status.NOT_FOUND, Status.NO_MORE_ITEMS):
            return None
        if answer.status != Status.OK:
            raise IntegrationRefused(f"{name} refused: status {answer.status:#010x}")
        if request.operation in (KvpOperation.SET, KvpOperation.DELETE):
            return request
        try:
            return Kvp.decode(answer.body, is_answer=True)
        except IcError as error:
            raise IntegrationRefused(f"{name} answered with garbage: {error}") from error

    # -- freeze and thaw

    async def _freeze(self, name: str) -> Mapping[str, Any]:
        check = await self._snapshot(name, SnapshotOperation.CHECK)
        try:
            flags = Snapshot.decode(check.body).flags
        except IcError as error:
            raise IntegrationRefused(f"{name} answered with garbage: {error}") from error
        if check.status != Status.OK or not flags & NO_AUTO_RECOVERY:
            raise IntegrationRefused(f"{name} cannot be backed up while it runs")
        self._freezes[name] = number = self._freezes.get(name, 0) + 1
        self._nursery.start_soon(self._thaw_later, name, number)
        answer = await self._snapshot(name, SnapshotOperation.FREEZE, QUIESCE_MS_MAX)
        if answer.status != Status.OK:
            raise IntegrationRefused(
                f"{name} did not come to rest (status {answer.status:#010x}); see what it prints:"
                " partvisor events --no-follow"
            )
        return {}

    async def _thaw(self, name: str) -> Mapping[str, Any]:
        self._freezes[name] = self._freezes.get(name, 0) + 1
        answer = await self._snapshot(name, SnapshotOperation.THAW)
        if answer.status != Status.OK:
            raise IntegrationRefused(
                f"{name} was not frozen any more: what was copied may not be consistent; a freeze lasts"
                f" {FREEZE_MS_MAX} ms at most"
            )
        return {}

    async def _thaw_later(self, name: str, number: int) -> None:
        await trio.sleep(FREEZE_MS_MAX / 1000)
        if self._freezes.get(name) == number:
            with contextlib.suppress(IntegrationRefused):  # it does so by itself
                await self._snapshot(name, SnapshotOperation.THAW)

    async def _snapshot(self, name: str, operation: SnapshotOperation, ms_max: int = ANSWER_MS_MAX) -> Answer:
        return await self._ask(SNAPSHOT, name, lambda vsp: Snapshot(operation).encode(), ms_max)
