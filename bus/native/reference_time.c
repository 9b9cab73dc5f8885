#include "reference_time.h"

#include "clock.h"

#define SAMPLE_TRIES 5

#if defined(__x86_64__)
#include <cpuid.h>
#include <x86intrin.h>

#define HAS_TSC true

/* The fence keeps the counter from being read before what stands above it. */
static inline uint64_t tsc_now(void)
{
    _mm_lfence();
    return __rdtsc();
}

bool reference_tsc_is_invariant(void)
{
    unsigned a, b, c, d;
    return __get_cpuid(0x80000007u, &a, &b, &c, &d) && (d >> 8 & 1);
}
#else
#define HAS_TSC false

static inline uint64_t tsc_now(void)
{
    return 0;
}

bool reference_tsc_is_invariant(void)
{
    return false;
}
#endif

/* ORDER sequence: the writer zeroes the sequence before it touches scale or offset, and sets a new one after both. Who
 *   reads any new value finds another sequence, or 0, when it looks again: its fence pairs with the writer's. Without
 *   them a scale could be used with another scale's offset, and time would jump by years. */
bool reference_time_read(const struct reference_page *page, uint64_t *time_100ns)
{
    if (!HAS_TSC)
        return false;
    for (;;) {
        const uint32_t sequence = atomic_load_explicit(&page->sequence, memory_order_acquire);
        if (sequence == 0)
            return false;
        const uint64_t scale = atomic_load_explicit(&page->scale, memory_order_relaxed);
        const int64_t offset = atomic_load_explicit(&page->offset, memory_order_relaxed);
        const uint64_t tsc = tsc_now();
        atomic_thread_fence(memory_order_acquire);
        if (atomic_load_explicit(&page->sequence, memory_order_relaxed) == sequence) {
            *time_100ns = (uint64_t)((unsigned __int128)tsc * scale >> 64) + (uint64_t)offset;
            return true;
        }
    }
}

void reference_time_write(struct reference_page *page, uint64_t scale, int64_t offset)
{
    static _Atomic uint32_t last; /* of all pages: a page that was not valid for a while does not come back with its number */
    atomic_store_explicit(&page->sequence, 0, memory_order_relaxed);
    if (scale == 0)
        return;
    atomic_thread_fence(memory_order_release); /* ORDER sequence */
    atomic_store_explicit(&page->scale, scale, memory_order_relaxed);
    atomic_store_explicit(&page->offset, offset, memory_order_relaxed);
    uint32_t sequence;
    do
        sequence = atomic_fetch_add_explicit(&last, 1, memory_order_relaxed) + 1;
    while (sequence == 0 || sequence == UINT32_MAX); /* old guests take the latter for not valid */
    atomic_store_explicit(&page->sequence, sequence, memory_order_release); /* ORDER sequence */
}

void reference_tsc_sample(uint64_t *tsc, uint64_t *now_ns)
{
    uint64_t least = UINT64_MAX;
    *tsc = 0;
    *now_ns = clock_now_ns();
    if (!HAS_TSC)
        return;
    for (int i = 0; i < SAMPLE_TRIES; i++) {
        const uint64_t before = tsc_now();
        const uint64_t between_ns = clock_now_ns();
        const uint64_t after = tsc_now();
        if (after - before < least) {
            least = after - before;
            *tsc = before + (after - before) / 2;
            *now_ns = between_ns;
        }
    }
}
