/* The rare half of the ring: attaching, packets that wrap, extra headers, the reader's signal to a blocked writer. */
#include "ring.h"

enum ring_status ring_writer_attach(struct ring_writer *writer, void *header_page, uint32_t size_bytes)
{
    assert(size_bytes >= RING_PAGE_BYTES && size_bytes % RING_PAGE_BYTES == 0 && size_bytes <= RING_MAX_DATA_BYTES);
    struct ring_header *header = header_page;
    const uint32_t in = atomic_load_explicit(&header->in, memory_order_acquire);
    const uint32_t out = atomic_load_explicit(&header->out, memory_order_acquire);
    if (!ring_index_is_valid(in, size_bytes) || !ring_index_is_valid(out, size_bytes))
        return RING_CORRUPT;
    *writer = (struct ring_writer){
        .header = header,
        .data = (uint8_t *)header_page + RING_PAGE_BYTES,
        .size_bytes = size_bytes,
        .staged_in = in,
        .published_in = in,
        .cached_out = out,
    };
    atomic_store_explicit(&header->pending_send_bytes, 0, memory_order_relaxed);
    atomic_store_explicit(&header->feature_bits, RING_FEATURE_PENDING_SEND, memory_order_release);
    return RING_OK;
}

enum ring_status ring_reader_attach(struct ring_reader *reader, void *header_page, uint32_t size_bytes)
{
    assert(size_bytes >= RING_PAGE_BYTES && size_bytes % RING_PAGE_BYTES == 0 && size_bytes <= RING_MAX_DATA_BYTES);
    struct ring_header *header = header_page;
    const uint32_t out = atomic_load_explicit(&header->out, memory_order_acquire);
    if (!ring_index_is_valid(out, size_bytes))
        return RING_CORRUPT;
    *reader = (struct ring_reader){
        .header = header,
        .data = (const uint8_t *)header_page + RING_PAGE_BYTES,
        .size_bytes = size_bytes,
        .next_out = out,
        .released_out = out,
        .cached_in = out, /* nothing is known of the writer yet: the first peek looks */
    };
    return RING_OK;
}

void ring_copy_in_split(struct ring_writer *writer, uint32_t at, const void *source, uint32_t bytes)
{
    const uint32_t to_end = writer->size_bytes - at;
    const uint32_t first = bytes < to_end ? bytes : to_end;
    memcpy(writer->data + at, source, first);
    if (bytes > first)
        memcpy(writer->data, (const uint8_t *)source + first, bytes - first);
}

void ring_copy_out_split(const struct ring_reader *reader, uint32_t at, void *target, uint32_t bytes)
{
    const uint32_t to_end = reader->size_bytes - at;
    const uint32_t first = bytes < to_end ? bytes : to_end;
    memcpy(target, reader->data + at, first);
    if (bytes > first)
        memcpy((uint8_t *)target + first, reader->data, bytes - first);
}

/* The caller, ring_write(), has found room for the packet, and that it runs over the ring's end somewhere. */
enum ring_status ring_write_split(struct ring_writer *writer, const uint64_t descriptor[2],
                                  const void *extra, uint32_t extra_bytes, const void *payload, uint32_t payload_bytes)
{
    static const uint8_t zeros[8] = {0};
    const uint32_t start = writer->staged_in, size_bytes = writer->size_bytes;
    uint32_t at = start;
    ring_copy_in_split(writer, at, descriptor, RING_DESCRIPTOR_BYTES);
    at = ring_forward(at, RING_DESCRIPTOR_BYTES, size_bytes);
    if (extra_bytes) {
        ring_copy_in_split(writer, at, extra, extra_bytes);
        at = ring_forward(at, extra_bytes, size_bytes);
    }
    if (payload_bytes) {
        ring_copy_in_split(writer, at, payload, payload_bytes);
        at = ring_forward(at, payload_bytes, size_bytes);
        const uint32_t pad_bytes = ring_align8(payload_bytes) - payload_bytes;
        ring_copy_in_split(writer, at, zeros, pad_bytes); /* stays inside one 8-byte unit */
        at = ring_forward(at, pad_bytes, size_bytes);
    }
    const uint64_t trailer = (uint64_t)start << 32;
    ring_copy_in_split(writer, at, &trailer, RING_TRAILER_BYTES);
    writer->staged_in = ring_forward(at, RING_TRAILER_BYTES, size_bytes);
    return RING_OK;
}

static bool gpa_ranges_are_valid(const uint8_t *ranges, uint32_t bytes, uint32_t count)
{
    if (count == 0)
        return false;
    uint64_t at = 0;
    for (uint32_t i = 0; i < count; i++) {
        uint32_t byte_count, byte_offset;
        if (bytes - at < 8) /* at <= bytes always holds, so this cannot wrap */
            return false;
        memcpy(&byte_count, ranges + at, 4);
        memcpy(&byte_offset, ranges + at + 4, 4);
        if (byte_count == 0 || byte_offset >= RING_PAGE_BYTES)
            return false;
        const uint64_t pages = ((uint64_t)byte_offset + byte_count + RING_PAGE_BYTES - 1) / RING_PAGE_BYTES;
        at += 8;
        if (pages * 8 > bytes - at)
            return false;
        at += pages * 8;
    }
    return true;
}

bool ring_extra_is_valid(uint16_t type, const void *extra, uint32_t extra_bytes)
{
    const uint8_t *bytes = extra;
    uint32_t count;
    switch (type) {
    case RING_PACKET_TRANSFER_PAGES: /* u16 set id, u8 owned, u8 reserved, u32 count, count of {u32, u32} */
        if (extra_bytes < 8)
            return false;
        memcpy(&count, bytes + 4, 4);
        return (uint64_t)count * 8 <= extra_bytes - 8;
    case RING_PACKET_GPA_DIRECT: /* u32 reserved, u32 count, count of {u32 bytes, u32 offset, u64 pfn[]} */
        if (extra_bytes < 8)
            return false;
        memcpy(&count, bytes + 4, 4);
        return gpa_ranges_are_valid(bytes + 8, extra_bytes - 8, count);
    default:
        return true;
    }
}

/* Source: Linux drivers/hv/ring_buffer.c, hv_pkt_iter_close; openvmm vmbus_ring, IncomingRing::commit_read. */
bool ring_release_signals_writer(struct ring_reader *reader, uint32_t previous_out, uint32_t pending_bytes)
{
    const uint32_t wanted = pending_bytes & ~7u; /* some peers ask for size - 1, which is never met exactly */
    const struct ring_header *header = reader->header;
    if (!(atomic_load_explicit(&header->feature_bits, memory_order_relaxed) & RING_FEATURE_PENDING_SEND))
        return false;
    const uint32_t in = atomic_load_explicit(&header->in, memory_order_relaxed);
    if (!ring_index_is_valid(in, reader->size_bytes))
        return false; /* the next look at `in` ends the channel */
    const uint32_t most = reader->size_bytes - 8u;
    const uint32_t writable_before = most - ring_distance(previous_out, in, reader->size_bytes);
    const uint32_t writable_now = most - ring_distance(reader->released_out, in, reader->size_bytes);
    return writable_before < wanted && wanted <= writable_now;
}
