"""A guest's pairs of keys and values, pool by pool, and what the host may do with them."""

import threading
from typing import Final

from partitions.integration.bodies import Kvp, KvpOperation, Pool
from partitions.integration.wire import Status

KEYS_MAX: Final = 256  # of one pool

_HOSTS: Final = frozenset((Pool.EXTERNAL, Pool.AUTO_EXTERNAL))  # that the host may change


class KeyValues:
    """Any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pools: dict[int, dict[str, str]] = {pool: {} for pool in Pool}

    def get(self, key: str, pool: Pool = Pool.EXTERNAL) -> str | None:
        """By itself: what the host has told us."""
        with self._lock:
            return self._pools[pool].get(key)

    def publish(self, key: str, value: str, pool: Pool = Pool.GUEST) -> None:
        """For the host to read. ValueError: too long, or too many."""
        Kvp(KvpOperation.SET, pool, key, value).encode()
        with self._lock:
            if not self._put(pool, key, value):
                raise ValueError(f"{KEYS_MAX} keys are there already")

    def _put(self, pool: int, key: str, value: str) -> bool:
        pairs = self._pools[pool]
        if key not in pairs and len(pairs) >= KEYS_MAX:
            return False
        pairs[key] = value
        return True

    def answer(self, request: Kvp) -> tuple[Kvp, int]:
        """What the host asks for, done; and the status."""
        if request.pool not in self._pools:
            return request, Status.FAIL
        pool = Pool(request.pool)
        with self._lock:
            pairs = self._pools[pool]
            match request.operation:
                case KvpOperation.GET if request.key in pairs:
                    return Kvp(request.operation, pool, request.key, pairs[request.key]), Status.OK
                case KvpOperation.GET:
                    return request, Status.NOT_FOUND
                case KvpOperation.ENUMERATE if request.index < len(pairs):
                    key, value = list(pairs.items())[request.index]
                    return Kvp(request.operation, pool, key, value, request.index), Status.OK
                case KvpOperation.ENUMERATE:
                    return request, Status.NO_MORE_ITEMS
                case KvpOperation.SET | KvpOperation.DELETE if pool not in _HOSTS:
                    return request, Status.FAIL
                case KvpOperation.SET:
                    return request, Status.OK if self._put(pool, request.key, request.value) else Status.FAIL
                case KvpOperation.DELETE:
                    found = pairs.pop(request.key, None) is not None
                    return request, Status.OK if found else Status.NOT_FOUND
        return request, Status.NOT_SUPPORTED
