/* Guest physical ranges -> host addresses: a sorted, bounded table. What a device server may touch. No Python. */
#ifndef PARTVISOR_GPA_H
#define PARTVISOR_GPA_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define GPA_PAGE_BYTES 4096u
#define GPA_DEFAULT_MAX_RANGES 64u
#define GPA_MAX_RANGES 4096u

struct gpa_range {
    uint64_t first_pfn, pages;
    uint8_t *memory; /* pages * 4096 bytes */
    bool writable;
    void *owner; /* the table's user keeps what it likes here */
};

struct gpa_table {
    struct gpa_range *ranges; /* by first_pfn, without overlap */
    uint32_t count, max_ranges;
};

enum gpa_status {
    GPA_OK = 0,
    GPA_INVALID,    /* not whole pages, or beyond the end of the address space */
    GPA_OVERLAP,
    GPA_TABLE_FULL,
    GPA_NOT_MAPPED, /* a page outside every range, or not writable for a write: that request fails, nothing else */
    GPA_MALFORMED,  /* offset or length do not fit the list of PFNs */
};

/* A run of bytes inside one range, contiguous on the host. */
struct gpa_span {
    const struct gpa_range *range;
    uint64_t offset_bytes; /* from the range's start */
    uint64_t bytes;
};

enum gpa_status gpa_add(struct gpa_table *table, const struct gpa_range *range);

/* The index of the range that starts at first_pfn, or -1. */
int64_t gpa_index_of(const struct gpa_table *table, uint64_t first_pfn);
void gpa_remove_at(struct gpa_table *table, uint32_t index);

/* Resolve byte_count bytes from byte_offset in the first of `pfns` into spans, merging host neighbours.
 * pfns: little-endian u64s at any alignment. spans: room for pfn_count. On GPA_OK *span_count is set. */
enum gpa_status gpa_resolve(const struct gpa_table *table, uint32_t byte_offset, uint32_t byte_count, const void *pfns,
                            size_t pfn_count, bool write, struct gpa_span *spans, size_t *span_count);

#endif
