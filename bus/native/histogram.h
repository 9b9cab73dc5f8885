/* Log-linear histogram of u64 values: exact below 128, then 128 buckets an octave (under 0.8 % error). No Python. */
#ifndef PARTVISOR_HISTOGRAM_H
#define PARTVISOR_HISTOGRAM_H

#include <stddef.h>
#include <stdint.h>

#define HISTOGRAM_SUB_BITS 7u
#define HISTOGRAM_SUB_BUCKETS (1u << HISTOGRAM_SUB_BITS)
#define HISTOGRAM_BUCKETS ((64u - HISTOGRAM_SUB_BITS + 1u) * HISTOGRAM_SUB_BUCKETS)

struct histogram {
    uint64_t count, minimum, maximum;
    uint64_t buckets[HISTOGRAM_BUCKETS];
};

static inline uint32_t histogram_bucket_of(uint64_t value)
{
    if (value < HISTOGRAM_SUB_BUCKETS)
        return (uint32_t)value;
    const uint32_t octave = 63u - (uint32_t)__builtin_clzll(value) - HISTOGRAM_SUB_BITS; /* 0: [128, 256) */
    return (octave + 1) * HISTOGRAM_SUB_BUCKETS + (uint32_t)(value >> octave) - HISTOGRAM_SUB_BUCKETS;
}

/* The largest value that falls into a bucket. */
static inline uint64_t histogram_top_of(uint32_t bucket)
{
    if (bucket < HISTOGRAM_SUB_BUCKETS)
        return bucket;
    const uint32_t octave = bucket / HISTOGRAM_SUB_BUCKETS - 1;
    const uint64_t step = (uint64_t)1 << octave;
    return (HISTOGRAM_SUB_BUCKETS + bucket % HISTOGRAM_SUB_BUCKETS) * step + (step - 1);
}

static inline void histogram_record(struct histogram *histogram, uint64_t value)
{
    if (histogram->count++ == 0 || value < histogram->minimum)
        histogram->minimum = value;
    if (value > histogram->maximum)
        histogram->maximum = value;
    histogram->buckets[histogram_bucket_of(value)]++;
}

/* The value that `percent` of all values do not exceed, 0 when there are none. Never outside [minimum, maximum]. */
uint64_t histogram_percentile(const struct histogram *histogram, double percent);

void histogram_merge(struct histogram *into, const struct histogram *from);

/* Packed, for files: a version byte, then varints (LEB128, shortest form): minimum, maximum, and for each occupied
 * bucket how many empty ones stand before it and its count. */
#define HISTOGRAM_PACK_VERSION 1u
#define HISTOGRAM_VARINT_BYTES_MAX 10u
#define HISTOGRAM_PACKED_BYTES_MAX (1u + HISTOGRAM_VARINT_BYTES_MAX * 2u * (1u + HISTOGRAM_BUCKETS))

/* into: HISTOGRAM_PACKED_BYTES_MAX of room. Returns how many bytes it took. */
size_t histogram_pack(const struct histogram *histogram, uint8_t *into);

/* The bytes are anybody's: NULL, or what is wrong with them; `into` is then unusable. Each histogram has one packing. */
const char *histogram_unpack(struct histogram *into, const uint8_t *bytes, size_t length);

#endif
