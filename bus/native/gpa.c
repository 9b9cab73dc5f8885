#include "gpa.h"

#include <string.h>

#define LAST_PFN (UINT64_MAX / GPA_PAGE_BYTES)

/* The number of ranges that start at or below pfn. */
static uint32_t starting_at_or_below(const struct gpa_table *table, uint64_t pfn)
{
    uint32_t low = 0, high = table->count;
    while (low < high) {
        const uint32_t middle = low + (high - low) / 2;
        if (table->ranges[middle].first_pfn <= pfn)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

enum gpa_status gpa_add(struct gpa_table *table, const struct gpa_range *range)
{
    if (range->pages == 0 || range->first_pfn > LAST_PFN || range->pages - 1 > LAST_PFN - range->first_pfn)
        return GPA_INVALID;
    const uint32_t at = starting_at_or_below(table, range->first_pfn);
    if (at > 0 && range->first_pfn - table->ranges[at - 1].first_pfn < table->ranges[at - 1].pages)
        return GPA_OVERLAP;
    if (at < table->count && table->ranges[at].first_pfn - range->first_pfn < range->pages)
        return GPA_OVERLAP;
    if (table->count == table->max_ranges)
        return GPA_TABLE_FULL;
    memmove(&table->ranges[at + 1], &table->ranges[at], (table->count - at) * sizeof *table->ranges);
    table->ranges[at] = *range;
    table->count++;
    return GPA_OK;
}

int64_t gpa_index_of(const struct gpa_table *table, uint64_t first_pfn)
{
    const uint32_t below = starting_at_or_below(table, first_pfn);
    return below > 0 && table->ranges[below - 1].first_pfn == first_pfn ? (int64_t)below - 1 : -1;
}

void gpa_remove_at(struct gpa_table *table, uint32_t index)
{
    table->count--;
    memmove(&table->ranges[index], &table->ranges[index + 1], (table->count - index) * sizeof *table->ranges);
}

enum gpa_status gpa_resolve(const struct gpa_table *table, uint32_t byte_offset, uint32_t byte_count, const void *pfns,
                            size_t pfn_count, bool write, struct gpa_span *spans, size_t *span_count)
{
    const uint64_t end = (uint64_t)byte_offset + byte_count;
    if (byte_count == 0 || byte_offset >= GPA_PAGE_BYTES || (end + GPA_PAGE_BYTES - 1) / GPA_PAGE_BYTES != pfn_count)
        return GPA_MALFORMED;
    size_t count = 0;
    uint64_t left = byte_count;
    uint32_t offset = byte_offset;
    for (size_t i = 0; i < pfn_count; i++) {
        uint64_t pfn;
        memcpy(&pfn, (const uint8_t *)pfns + i * 8, 8);
        const uint32_t below = starting_at_or_below(table, pfn);
        if (below == 0)
            return GPA_NOT_MAPPED;
        const struct gpa_range *range = &table->ranges[below - 1];
        const uint64_t page = pfn - range->first_pfn;
        if (page >= range->pages || (write && !range->writable))
            return GPA_NOT_MAPPED;
        const uint64_t here = left < GPA_PAGE_BYTES - offset ? left : GPA_PAGE_BYTES - offset;
        const uint64_t at = page * GPA_PAGE_BYTES + offset;
        if (count > 0 && spans[count - 1].range == range && spans[count - 1].offset_bytes + spans[count - 1].bytes == at)
            spans[count - 1].bytes += here;
        else
            spans[count++] = (struct gpa_span){.range = range, .offset_bytes = at, .bytes = here};
        left -= here;
        offset = 0;
    }
    *span_count = count;
    return GPA_OK;
}
