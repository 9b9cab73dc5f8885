#include "histogram.h"

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
