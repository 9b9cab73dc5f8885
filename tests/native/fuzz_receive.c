/* libFuzzer target: whatever a peer writes into the shared pages, the receiving side stays inside its memory.
 *
 * Input: 1 byte of ring size, then steps. A step writes bytes as the peer would (into the header or the data), or takes
 * packets as a channel does. Every copy goes into a heap block of its exact size, where AddressSanitizer watches. */
#include <stdlib.h>

#include "gpa.h"
#include "ring.h"

#define PACKETS_A_STEP 8

struct input {
    const uint8_t *at;
    size_t left;
};

static uint32_t take(struct input *input, unsigned bytes)
{
    uint32_t value = 0;
    for (unsigned i = 0; i < bytes && input->left; i++, input->left--)
        value |= (uint32_t)*input->at++ << 8 * i;
    return value;
}

static void must(bool condition)
{
    if (!condition)
        abort();
}

/* What a device server does with the ranges of a GPA-direct packet. */
static void resolve(const struct gpa_table *table, const uint8_t *extra, uint32_t extra_bytes)
{
    uint32_t count, at = 8;
    memcpy(&count, extra + 4, 4);
    for (uint32_t i = 0; i < count; i++) {
        uint32_t byte_count, byte_offset;
        must(at + 8 <= extra_bytes);
        memcpy(&byte_count, extra + at, 4);
        memcpy(&byte_offset, extra + at + 4, 4);
        const size_t pages = ((size_t)byte_offset + byte_count + GPA_PAGE_BYTES - 1) / GPA_PAGE_BYTES;
        must(at + 8 + pages * 8 <= extra_bytes);
        struct gpa_span *spans = malloc(pages * sizeof *spans);
        size_t span_count = 0;
        must(spans);
        if (gpa_resolve(table, byte_offset, byte_count, extra + at + 8, pages, i % 2, spans, &span_count) == GPA_OK)
            for (size_t k = 0; k < span_count; k++)
                must(spans[k].offset_bytes + spans[k].bytes <= spans[k].range->pages * GPA_PAGE_BYTES);
        free(spans);
        at += 8 + (uint32_t)pages * 8;
    }
}

static void receive(struct ring_reader *reader, const struct gpa_table *table)
{
    struct ring_packet packet;
    for (unsigned i = 0; i < PACKETS_A_STEP && ring_peek(reader, &packet) == RING_OK; i++) {
        must(packet.extra_bytes + packet.payload_bytes + 24 == packet.total_bytes && packet.total_bytes < reader->size_bytes);
        uint8_t *extra = malloc(packet.extra_bytes + 1), *payload = malloc(packet.payload_bytes + 1);
        must(extra && payload);
        ring_copy_out(reader, packet.extra_at, extra, packet.extra_bytes);
        ring_copy_out(reader, packet.payload_at, payload, packet.payload_bytes);
        if (ring_extra_is_valid(packet.type, extra, packet.extra_bytes) && packet.type == RING_PACKET_GPA_DIRECT)
            resolve(table, extra, packet.extra_bytes);
        free(extra);
        free(payload);
        ring_hold(reader, &packet);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct input input = {data, size};
    const uint32_t size_bytes = RING_PAGE_BYTES * (1 + take(&input, 1) % 3);
    uint8_t *memory = aligned_alloc(RING_PAGE_BYTES, RING_PAGE_BYTES + size_bytes);
    struct gpa_range ranges[2] = {{.first_pfn = 0, .pages = 4, .writable = true}, {.first_pfn = 6, .pages = 2}};
    const struct gpa_table table = {.ranges = ranges, .count = 2, .max_ranges = 2};
    struct ring_reader reader;
    struct ring_writer writer;
    must(memory);
    memset(memory, 0, RING_PAGE_BYTES + size_bytes);
    must(ring_reader_attach(&reader, memory, size_bytes) == RING_OK);
    must(ring_writer_attach(&writer, memory, size_bytes) == RING_OK);
    while (input.left) {
        const uint32_t step = take(&input, 1);
        if (step < 0x40) { /* a header field */
            const uint32_t value = take(&input, 4);
            memcpy(memory + step % 17 * 4, &value, 4);
        } else if (step < 0xA0) { /* bytes where the next packet is expected */
            const uint32_t at = (reader.next_out + take(&input, 1)) % size_bytes;
            for (uint32_t i = 0; i < (step & 0x1F) + 1u; i++)
                memory[RING_PAGE_BYTES + (at + i) % size_bytes] = (uint8_t)take(&input, 1);
        } else if (step < 0xC0) { /* publish so many units */
            const uint32_t in = (reader.next_out + take(&input, 2) * 8) % size_bytes;
            memcpy(memory, &in, 4);
        } else if (step < 0xD0) { /* the other side: our own writer, whose peer lies about read_index */
            const uint32_t payload_bytes = take(&input, 2) % 700;
            uint8_t *payload = calloc(1, payload_bytes + 1);
            must(payload);
            if (ring_write(&writer, RING_PACKET_IN_BAND, 0, step, NULL, 0, payload, payload_bytes) == RING_OK)
                ring_publish(&writer);
            else
                ring_want_space(&writer, 64);
            free(payload);
        } else if (step < 0xF0) {
            receive(&reader, &table);
        } else {
            ring_release(&reader);
        }
    }
    receive(&reader, &table);
    free(memory);
    return 0;
}
