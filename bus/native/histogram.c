#include "histogram.h"

#include <stdbool.h>
#include <string.h>

uint64_t histogram_percentile(const struct histogram *histogram, double percent)
{
    if (histogram->count == 0)
        return 0;
    const double exact = percent / 100.0 * (double)histogram->count;
    uint64_t rank = (uint64_t)exact; /* of the value sought, counted from 1: rounded up */
    if ((double)rank < exact)
        rank++;
    if (rank <= 1)
        return histogram->minimum;
    if (rank >= histogram->count)
        return histogram->maximum;
    uint64_t seen = 0;
    for (uint32_t bucket = 0; bucket < HISTOGRAM_BUCKETS; bucket++) {
        seen += histogram->buckets[bucket];
        if (seen >= rank) {
            const uint64_t top = histogram_top_of(bucket);
            return top < histogram->maximum ? top : histogram->maximum;
        }
    }
    return histogram->maximum;
}

void histogram_merge(struct histogram *into, const struct histogram *from)
{
    if (from->count == 0)
        return;
    if (into->count == 0 || from->minimum < into->minimum)
        into->minimum = from->minimum;
    if (from->maximum > into->maximum)
        into->maximum = from->maximum;
    into->count += from->count;
    for (uint32_t bucket = 0; bucket < HISTOGRAM_BUCKETS; bucket++)
        into->buckets[bucket] += from->buckets[bucket];
}

static uint8_t *put_varint(uint8_t *at, uint64_t value)
{
    for (; value > 0x7F; value >>= 7)
        *at++ = (uint8_t)(value | 0x80);
    *at++ = (uint8_t)value;
    return at;
}

/* False: it does not end within the bytes, does not fit into a u64, or has a shorter form. */
static bool take_varint(const uint8_t **at, const uint8_t *end, uint64_t *value)
{
    *value = 0;
    for (unsigned shift = 0; shift < 64 && *at < end; shift += 7) {
        const uint8_t byte = *(*at)++;
        if ((shift == 63 && byte > 1) || (shift > 0 && byte == 0))
            return false;
        *value |= (uint64_t)(byte & 0x7F) << shift;
        if (byte < 0x80)
            return true;
    }
    return false;
}

size_t histogram_pack(const struct histogram *histogram, uint8_t *into)
{
    uint8_t *at = into;
    *at++ = HISTOGRAM_PACK_VERSION;
    at = put_varint(at, histogram->minimum);
    at = put_varint(at, histogram->maximum);
    uint32_t next = 0;
    for (uint32_t bucket = 0; bucket < HISTOGRAM_BUCKETS; bucket++) {
        if (histogram->buckets[bucket] == 0)
            continue;
        at = put_varint(at, bucket - next);
        at = put_varint(at, histogram->buckets[bucket]);
        next = bucket + 1;
    }
    return (size_t)(at - into);
}

const char *histogram_unpack(struct histogram *into, const uint8_t *bytes, size_t length)
{
    const uint8_t *at = bytes, *const end = bytes + length;
    uint32_t next = 0, first = 0;
    memset(into, 0, sizeof(*into));
    if (at == end || *at++ != HISTOGRAM_PACK_VERSION)
        return "not a packed histogram of this version";
    if (!take_varint(&at, end, &into->minimum) || !take_varint(&at, end, &into->maximum))
        return "a number is cut off or too long";
    while (at < end) {
        uint64_t gap, count;
        if (!take_varint(&at, end, &gap) || !take_varint(&at, end, &count))
            return "a number is cut off or too long";
        if (gap >= HISTOGRAM_BUCKETS - next)
            return "there is no such bucket";
        if (count == 0 || count > UINT64_MAX - into->count)
            return "a bucket's count is zero, or the sum too large";
        const uint32_t bucket = next + (uint32_t)gap;
        if (into->count == 0)
            first = bucket;
        into->buckets[bucket] = count;
        into->count += count;
        next = bucket + 1;
    }
    const bool empty = into->count == 0;
    const bool fits = empty ? into->minimum == 0 && into->maximum == 0
                            : into->minimum <= into->maximum && histogram_bucket_of(into->minimum) == first
                                  && histogram_bucket_of(into->maximum) == next - 1;
    if (!fits || (into->count == 1 && into->minimum != into->maximum))
        return "minimum and maximum do not fit the buckets";
    return NULL;
}
