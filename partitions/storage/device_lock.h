/* Keeps the channels of one device apart: from the first execution of a batch to its publication, nobody else executes.
 *
 * So when the root dies, at most one channel of a device has executed something that its guest has not been told of, and
 * nobody has seen or overwritten what it did: executing it again is no different from having been slow (docs/recovery.md).
 * Tickets, because a busy channel must not keep a quiet one out: whoever waits longest comes next. */
#ifndef PARTVISOR_DEVICE_LOCK_H
#define PARTVISOR_DEVICE_LOCK_H

#include <linux/futex.h>
#include <stdatomic.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <unistd.h>

struct device_lock {
    _Atomic uint32_t next_ticket, serving;
};

static inline void device_lock_acquire(struct device_lock *lock)
{
    const uint32_t ticket = atomic_fetch_add_explicit(&lock->next_ticket, 1, memory_order_relaxed);
    uint32_t serving;
    /* ORDER lock: the acquire pairs with the release in device_lock_release(): what the one before did, we see. */
    while ((serving = atomic_load_explicit(&lock->serving, memory_order_acquire)) != ticket)
        syscall(SYS_futex, &lock->serving, FUTEX_WAIT_PRIVATE, serving, NULL, NULL, 0);
}

static inline void device_lock_release(struct device_lock *lock)
{
    const uint32_t following = atomic_load_explicit(&lock->serving, memory_order_relaxed) + 1;
    /* Sequentially consistent, as the load after it: who drew a ticket before we look is woken; who draws one later
     * sees the new number, for its futex compares it. */
    atomic_store(&lock->serving, following);
    if (atomic_load(&lock->next_ticket) != following)
        syscall(SYS_futex, &lock->serving, FUTEX_WAKE_PRIVATE, INT32_MAX, NULL, NULL, 0);
}

#endif
