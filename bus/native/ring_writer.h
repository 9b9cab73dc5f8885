/* The writer's side of a ring: stage packets, publish them, wait for room. Caller of all: this ring's one producer. */
#ifndef PARTVISOR_RING_WRITER_H
#define PARTVISOR_RING_WRITER_H

#include "ring_layout.h"

/* The writer's private side. Offsets are bytes into the data area, below size_bytes, multiples of 8. */
struct ring_writer {
    struct ring_header *header;
    uint8_t *data;
    uint32_t size_bytes;
    uint32_t staged_in;    /* end of what is written */
    uint32_t published_in; /* end of what the reader may see: the authority; the header has a copy of it */
    uint32_t cached_out;   /* the reader's index when last looked at: free space can only have grown since */
};

/* Attach to an existing ring, or to a zeroed one. RING_CORRUPT when our own side's index in the header is impossible.
 * size_bytes: of the data area, whole pages, at most RING_MAX_DATA_BYTES. */
enum ring_status ring_writer_attach(struct ring_writer *writer, void *header_page, uint32_t size_bytes);

void ring_copy_in_split(struct ring_writer *writer, uint32_t at, const void *source, uint32_t bytes);
enum ring_status ring_write_split(struct ring_writer *writer, const uint64_t descriptor[2],
                                  const void *extra, uint32_t extra_bytes, const void *payload, uint32_t payload_bytes);

/* Bytes that a packet may take now, as far as the cached index tells. One unit stays free: full must not look empty. */
static inline uint32_t ring_writable_cached(const struct ring_writer *writer)
{
    return writer->size_bytes - 8u - ring_distance(writer->cached_out, writer->staged_in, writer->size_bytes);
}

/* Look at the reader's index again. Pairs with the release in ring_release(): who sees `out` may overwrite what is before. */
static inline enum ring_status ring_writer_refresh(struct ring_writer *writer)
{
    const uint32_t out = atomic_load_explicit(&writer->header->out, memory_order_acquire);
    if (!ring_index_is_valid(out, writer->size_bytes))
        return RING_CORRUPT;
    writer->cached_out = out;
    return RING_OK;
}

/* Write one packet behind those already staged; the reader sees none of them before ring_publish().
 * extra_bytes: a multiple of 8. RING_TOO_LARGE, RING_FULL and RING_CORRUPT leave everything as it was.
 * Inlined always: half of it folds away where the sizes are constants, which the compiler does not foresee. */
static inline __attribute__((always_inline)) enum ring_status ring_write(struct ring_writer *writer, uint16_t type, uint16_t flags,
                                          uint64_t transaction_id, const void *extra, uint32_t extra_bytes,
                                          const void *payload, uint32_t payload_bytes)
{
    assert(extra_bytes % 8 == 0);
    const uint64_t wide_total = ring_packet_bytes(extra_bytes, payload_bytes);
    if (wide_total > ring_largest_packet_bytes(writer->size_bytes))
        return RING_TOO_LARGE;
    const uint32_t total = (uint32_t)wide_total;
    if (total > ring_writable_cached(writer)) {
        const enum ring_status status = ring_writer_refresh(writer);
        if (status != RING_OK)
            return status;
        if (total > ring_writable_cached(writer))
            return RING_FULL;
    }
    const uint64_t descriptor[2] = {
        ring_descriptor_word(type, (RING_DESCRIPTOR_BYTES + extra_bytes) / 8, (total - RING_TRAILER_BYTES) / 8, flags),
        transaction_id,
    };
    const uint32_t start = writer->staged_in;
    if (__builtin_expect(start + total > writer->size_bytes, 0))
        return ring_write_split(writer, descriptor, extra, extra_bytes, payload, payload_bytes);
    uint8_t *at = writer->data + start;
    memcpy(at, &descriptor[0], 8);
    memcpy(at + 8, &descriptor[1], 8);
    at += RING_DESCRIPTOR_BYTES;
    if (extra_bytes) {
        ring_copy(at, extra, extra_bytes);
        at += extra_bytes;
    }
    if (payload_bytes) {
        if (payload_bytes % 8) /* the pad is zero: no byte of an older packet leaks */
            memset(at + (payload_bytes & ~7u), 0, 8);
        ring_copy(at, payload, payload_bytes);
        at += ring_align8(payload_bytes);
    }
    const uint64_t trailer = (uint64_t)start << 32;
    memcpy(at, &trailer, RING_TRAILER_BYTES);
    writer->staged_in = ring_forward(start, total, writer->size_bytes);
    return RING_OK;
}

/* First half of publishing: let the reader see all that is staged. A full fence must follow, then ring_publish_signals().
 * ORDER publish: the release pairs with the acquire in ring_reader_refresh(); who sees `in` sees the bytes. */
static inline uint32_t ring_publish_index(struct ring_writer *writer)
{
    const uint32_t previous_in = writer->published_in;
    writer->published_in = writer->staged_in;
    atomic_store_explicit(&writer->header->in, writer->published_in, memory_order_release);
    return previous_in;
}

/* Second half, behind the fence. True: the ring was empty and its reader may sleep, signal it now. */
static inline bool ring_publish_signals(struct ring_writer *writer, uint32_t previous_in)
{
    if (atomic_load_explicit(&writer->header->interrupt_mask, memory_order_acquire) != 0)
        return false;
    return atomic_load_explicit(&writer->header->out, memory_order_relaxed) == previous_in;
}

/* Publish everything staged, once; true: signal the reader now.
 * ORDER sleep: the fence pairs with the one in ring_unmask(), which clears the mask and then loads `in`. One fence comes
 *   first, so we see the mask clear or the reader sees our bytes; without them both may look too early, and a packet
 *   waits in a ring whose reader sleeps. It cannot be skipped when the ring looked occupied before, either: the reader
 *   may have drained it and gone to sleep between that look and our store. What can be saved is its number: one a batch. */
static inline bool ring_publish(struct ring_writer *writer)
{
    const uint32_t previous_in = ring_publish_index(writer);
    if (previous_in == writer->published_in)
        return false;
    RING_FULL_FENCE();
    return ring_publish_signals(writer, previous_in);
}

/* Forget what is staged and not published. */
static inline void ring_unstage(struct ring_writer *writer)
{
    writer->staged_in = writer->published_in;
}

/* Ask to be signalled once `packet_bytes` fit, then look again. RING_OK: it fits now; RING_FULL: the caller may sleep.
 * ORDER space: the fence pairs with the one in ring_release(), which stores `out` and then loads pending_send_sz. One
 *   fence comes first, so the reader sees our wish or we see its space; without them a writer sleeps beside a free ring. */
static inline enum ring_status ring_want_space(struct ring_writer *writer, uint32_t packet_bytes)
{
    atomic_store_explicit(&writer->header->pending_send_bytes, ring_align8(packet_bytes), memory_order_relaxed);
    RING_FULL_FENCE();
    const enum ring_status status = ring_writer_refresh(writer);
    if (status != RING_OK)
        return status;
    return packet_bytes <= ring_writable_cached(writer) ? RING_OK : RING_FULL;
}

static inline void ring_want_no_space(struct ring_writer *writer)
{
    atomic_store_explicit(&writer->header->pending_send_bytes, 0, memory_order_relaxed);
}

#endif
