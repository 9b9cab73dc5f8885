"""Lines of JSON in a file, and answers in another: how whoever runs an attack says which and when."""

import json
import os
from collections.abc import Mapping
from typing import Any, Final

from partitions.child import Partition

_READ_BYTES: Final = 1 << 16


class Orders:
    """Files of the partition: orders, answers."""

    def __init__(self, partition: Partition) -> None:
        self._orders, self._answers = partition.files["orders"], partition.files["answers"]
        self._unread = b""

    def next(self) -> dict[str, Any] | None:
        """Waits for it. None: there are no more."""
        while b"\n" not in self._unread:
            self._unread += os.read(self._orders, _READ_BYTES)
        line, _, self._unread = self._unread.partition(b"\n")
        order: dict[str, Any] = json.loads(line)
        return order if order else None

    def answer(self, answer: Mapping[str, Any]) -> None:
        os.write(self._answers, (json.dumps(answer) + "\n").encode())
