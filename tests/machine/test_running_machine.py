"""A machine as whoever breaks it sees it: its caller can be interrupted anywhere, and it can still be closed."""

from pathlib import Path

import pytest

from runtime.chaos.running_machine import PATIENCE_S, RunningMachine
from tests.interrupting import interrupted_everywhere
from tests.machine.conftest import idle_partition, machine_toml

pytestmark = pytest.mark.machine


def test_ctrl_c_at_any_instruction_holds_up_nobody(scratch: Path) -> None:
    config = scratch / "machine.toml"
    config.write_text(machine_toml(idle_partition("guest")))
    with RunningMachine(scratch, config) as machine:
        machine.wait_for("machine.ready")
        interrupted = 0
        for call in (
            lambda: machine.all_of("machine.ready"),
            lambda: machine.wait_until(lambda: False, 0.001),
            lambda: machine.wait_for_news(0.0),
        ):
            interrupted += sum(raised is not None for raised in interrupted_everywhere(call))
        assert interrupted
        machine.process.kill()  # they read on until it is gone
        for thread in machine._threads:
            thread.join(PATIENCE_S)
            assert not thread.is_alive()
        assert machine.is_over
