"""A VP that runs x86 machine code: unicorn executes, the hypervisor intercepts.

Its RAM is the partition's own memory slot, mapped at guest physical 0: what the code writes stands in the pages that
others can be given. IN and OUT, and memory above the RAM, become accesses of the partition. There is no firmware:
whoever wants INT 10h has to bring it.

Needs the extra `emulation`: pip install 'partvisor[emulation]'
"""

import contextlib
import ctypes
import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from bus.memory import PAGE_BYTES
from partitions.vp.saved_registers import MachineCodeError as MachineCodeError
from partitions.vp.saved_registers import Mode as Mode
from partitions.vp.saved_registers import restore_registers, save_registers

if TYPE_CHECKING:
    from partitions.child import Partition
    from partitions.integration.guest import Integration

HOLE_BYTES: Final = 64 * 1024  # above the RAM, as far as real mode reaches: accesses there are the parent's
TRANSLATION_BYTES: Final = (
    32 << 20
)  # for translated code, of a process's bounded memory; unicorn's own is 1 GiB
_NO_END: Final = 0xFFFF_FFFF  # run until HLT


class MachineCode:
    """One VP. `memory` is its RAM, from address 0 on."""

    def __init__(self, partition: "Partition", ram_bytes: int, mode: Mode = Mode.REAL, vp: int = 0) -> None:
        """Raises MachineCodeError: there is no unicorn. HypercallError: the partition has not so much memory."""
        try:
            unicorn: Any = importlib.import_module("unicorn")  # says nothing of its types
            x86_const: Any = importlib.import_module("unicorn.x86_const")
        except ImportError as error:
            raise MachineCodeError(
                "running machine code needs unicorn: pip install 'partvisor[emulation]'"
            ) from error
        if ram_bytes <= 0 or ram_bytes % PAGE_BYTES:
            raise MachineCodeError(f"{ram_bytes} bytes of RAM; want whole pages of {PAGE_BYTES}")
        self._access, self._vp = partition.accesses, vp
        self._slot: Final = partition.map_memory(0, ram_bytes // PAGE_BYTES)
        self.memory: Final = self._slot.memory
        self._mode: Final = mode
        self._x86, self._error = x86_const, unicorn.UcError
        modes = {16: unicorn.UC_MODE_16, 32: unicorn.UC_MODE_32, 64: unicorn.UC_MODE_64}
        self._processor: Any = unicorn.Uc(unicorn.UC_ARCH_X86, modes[mode])
        self._processor.ctl_set_tcg_buffer_size(TRANSLATION_BYTES)
        # Keeps the address good as long as the processor has it.
        self._anchor = (ctypes.c_char * ram_bytes).from_buffer(self.memory)
        self._processor.mem_map_ptr(0, ram_bytes, unicorn.UC_PROT_ALL, ctypes.addressof(self._anchor))
        self._processor.mmio_map(ram_bytes, HOLE_BYTES, self._load, ram_bytes, self._store, ram_bytes)
        hook = self._processor.hook_add
        hook(unicorn.UC_HOOK_INSN, self._in, None, 1, 0, x86_const.UC_X86_INS_IN)
        hook(unicorn.UC_HOOK_INSN, self._out, None, 1, 0, x86_const.UC_X86_INS_OUT)
        hook(unicorn.UC_HOOK_INTR, self._interrupt)
        self._block_hook: Final = unicorn.UC_HOOK_BLOCK
        self.on_access: Callable[[], None] | None = None  # called after each, for whoever measures
        self._unexpected: str | None = None
        self._rests: Integration | None = None  # whose quiet times are ours
        self._rested = False  # it has stopped for one, and has not halted

    # -- what it cannot do by itself

    def _in(self, processor: object, port: int, size: int, _: object) -> int:
        value = self._access.access_port(self._vp, port, size).value
        if self.on_access is not None:
            self.on_access()
        return value

    def _out(self, processor: object, port: int, size: int, value: int, _: object) -> None:
        self._access.access_port(self._vp, port, size, write=True, value=value & (1 << 8 * size) - 1)
        if self.on_access is not None:
            self.on_access()

    def _load(self, processor: object, offset: int, size: int, base: int) -> int:
        return self._access.access_memory(self._vp, base + offset, size)

    def _store(self, processor: object, offset: int, size: int, value: int, base: int) -> None:
        self._access.access_memory(
            self._vp, base + offset, size, write=True, value=value & (1 << 8 * size) - 1
        )

    def _interrupt(self, processor: Any, number: int, _: object) -> None:
        self._unexpected = f"interrupt {number:#x}, and there is no firmware to take it"
        processor.emu_stop()

    # -- running

    def register(self, name: str) -> int:
        """Such as "ax" or "rip"."""
        return int(self._processor.reg_read(getattr(self._x86, f"UC_X86_REG_{name.upper()}")))

    def set_register(self, name: str, value: int) -> None:
        self._processor.reg_write(getattr(self._x86, f"UC_X86_REG_{name.upper()}"), value)

    def run(self, start: int) -> None:
        """From this address to the next HLT. Raises MachineCodeError: the code went where there is nothing."""
        while True:
            with contextlib.nullcontext() if self._rests is None else self._rests.writing():
                self._rested = False
                self._execute(start)
            if not self._rested:
                return
            start = self.next_address

    def _execute(self, start: int) -> None:
        self._unexpected = None
        try:
            self._processor.emu_start(start, _NO_END)
        except self._error as error:
            raise MachineCodeError(f"at {self._where}: {error}") from error
        if self._unexpected is not None:
            raise MachineCodeError(f"at {self._where}: {self._unexpected}")

    @property
    def _where(self) -> str:
        return f"{self.next_address:#x}"

    @property
    def next_address(self) -> int:
        """Of the next instruction, as `run` wants it."""
        if self._mode is Mode.REAL:
            return 16 * self.register("cs") + self.register("ip")
        return self.register("rip" if self._mode is Mode.LONG else "eip")

    # -- saving

    def rest_at_quiet_times(self, integration: "Integration") -> None:
        """Take part in backups and in `partvisor save`: the processor stands between two blocks of code meanwhile.

        Each block costs a look, about a microsecond. There it can be told from one that has halted: what stops before
        a block has not executed its HLT.
        """
        self._rests = integration
        self._processor.hook_add(self._block_hook, self._look)

    def _look(self, processor: Any, address: int, size: int, _: object) -> None:
        assert self._rests is not None
        if self._rests.wants_quiet:
            self._rested = True
            processor.emu_stop()

    def save(self) -> bytes:
        """Its registers; not its memory. Only while it does not run."""
        return save_registers(self._processor, self._x86, self._mode)

    def restore(self, state: bytes) -> None:
        """The registers of one that was saved. Its memory must be as it was: tables are read there.

        Raises MachineCodeError: they are none, or of a processor in another mode.
        """
        restore_registers(self._processor, self._x86, self._mode, state)
