/* Ringing a doorbell that a hostile process holds too, from a thread that serves everybody. */
#ifndef PARTVISOR_DOORBELL_H
#define PARTVISOR_DOORBELL_H

#include <linux/aio_abi.h>
#include <stdbool.h>

/* One thread's means of ringing. All zero: not opened yet. */
struct doorbell_ringer {
    aio_context_t context; /* 0: the kernel refused one, or none is open */
    int null_fd;
};

void doorbell_ringer_open(struct doorbell_ringer *ringer);
void doorbell_ringer_close(struct doorbell_ringer *ringer);

/* Add 1 to an eventfd. False: its counter is full, so nobody has read it for 2^64 - 2 rings; nothing was added.
 * Never blocks: see doorbell.c. */
bool doorbell_ring(struct doorbell_ringer *ringer, int fd);

#endif
