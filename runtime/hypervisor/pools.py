"""Deposited pages. What the broker keeps for a partition is paid from that partition's pool, so nobody can
make the broker grow, and the machine's pages are conserved: available + in use, over
all partitions, is constant.

Source: TLFS, HvCallDepositMemory, HvCallWithdrawMemory, HvCallGetMemoryBalance.
"""

from __future__ import annotations

from runtime.abi import HvStatus
from runtime.hypervisor.machine import Call
from runtime.hypervisor.replies import DONE, Refused, Reply


def deposit_memory(call: Call, *, pages: int) -> Reply:
    if pages == 0:
        raise Refused(HvStatus.INVALID_PARAMETER)
    call.caller.pool.require(pages)
    call.caller.pool.give(call.target.pool, pages)
    return DONE


def withdraw_memory(call: Call, *, pages: int) -> Reply:
    if pages == 0:
        raise Refused(HvStatus.INVALID_PARAMETER)
    call.target.pool.require(pages)
    call.target.pool.give(call.caller.pool, pages)
    return DONE


def get_memory_balance(call: Call) -> Reply:
    pool = call.target.pool
    return Reply(values={"available": pool.available, "in_use": pool.in_use})
