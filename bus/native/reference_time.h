/* The reference TSC page: a clock that a partition reads without asking anyone.
 *
 *   @0 u32 sequence, 0: not valid; @4 u32 0; @8 u64 scale; @16 i64 offset
 *   time = ((tsc * scale) >> 64) + offset, in units of 100 ns since the partition was created
 *
 * Source: TLFS, "Timers", Partition Reference TSC Page. */
#ifndef PARTVISOR_REFERENCE_TIME_H
#define PARTVISOR_REFERENCE_TIME_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

struct reference_page {
    _Atomic uint32_t sequence;
    uint32_t reserved;
    _Atomic uint64_t scale;
    _Atomic int64_t offset;
};
_Static_assert(sizeof(struct reference_page) == 24, "wire size");

/* Any reader, also of a page that it cannot write. False: not valid now; ask the TIME_REF_COUNT register. */
bool reference_time_read(const struct reference_page *page, uint64_t *time_100ns);

/* The page's one writer. scale 0: the page is not valid. */
void reference_time_write(struct reference_page *page, uint64_t scale, int64_t offset);

/* Whether the processor promises that the TSC never stops and never changes its rate. */
bool reference_tsc_is_invariant(void);

/* TSC and CLOCK_MONOTONIC of one moment: of a few tries the one that took least. tsc is 0 where there is none. */
void reference_tsc_sample(uint64_t *tsc, uint64_t *now_ns);

#endif
