/* Random use and random damage of ring.c, gpa.c, synic.c, histogram.c and crc32c.c, for the sanitizers to watch.
 *
 * usage: ring_property SEEDS [FIRST_SEED]      each seed is one schedule, and replays
 *
 * The honest part keeps a model and compares; the hostile part only has to stay inside its memory. Rings, payloads and
 * tables are heap blocks of their exact sizes, so that one byte too far is one byte outside. */
#include <stdio.h>
#include <stdlib.h>

#include "crc32c.h"
#include "gpa.h"
#include "histogram.h"
#include "ring.h"
#include "synic.h"

#define STEPS 3000
#define MODEL_PACKETS 512
#define PAYLOAD_MAX 900u

static uint64_t random_state;

static uint64_t next_random(void)
{
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return random_state;
}

static uint32_t below(uint32_t bound)
{
    return (uint32_t)(next_random() % bound);
}

#define EXPECT(condition)                                                        \
    do {                                                                         \
        if (!(condition)) {                                                      \
            printf("%s:%d: %s\n", __FILE__, __LINE__, #condition);               \
            exit(1);                                                             \
        }                                                                        \
    } while (0)

struct pair {
    uint8_t *memory;
    uint32_t size_bytes;
    struct ring_writer writer;
    struct ring_reader reader;
};

static struct pair new_pair(void)
{
    struct pair pair = {.size_bytes = RING_PAGE_BYTES * (1 + below(3))};
    pair.memory = aligned_alloc(RING_PAGE_BYTES, RING_PAGE_BYTES + pair.size_bytes);
    EXPECT(pair.memory);
    memset(pair.memory, 0, RING_PAGE_BYTES + pair.size_bytes);
    EXPECT(ring_writer_attach(&pair.writer, pair.memory, pair.size_bytes) == RING_OK);
    EXPECT(ring_reader_attach(&pair.reader, pair.memory, pair.size_bytes) == RING_OK);
    return pair;
}

struct expected {
    uint64_t transaction_id;
    uint32_t extra_bytes, payload_bytes;
    uint8_t first_byte;
};

static void honest(void)
{
    struct pair pair = new_pair();
    struct expected model[MODEL_PACKETS];
    uint32_t head = 0, tail = 0, used = 0, held_bytes = 0;
    struct ring_packet packet;
    for (int step = 0; step < STEPS; step++) {
        if (below(2) && tail - head < MODEL_PACKETS) {
            const uint32_t payload_bytes = below(PAYLOAD_MAX), extra_bytes = 8 * below(5);
            const uint8_t first_byte = (uint8_t)next_random();
            uint8_t *payload = malloc(payload_bytes), *extra = malloc(extra_bytes);
            EXPECT((payload || !payload_bytes) && (extra || !extra_bytes));
            if (payload_bytes)
                memset(payload, first_byte, payload_bytes);
            if (extra_bytes)
                memset(extra, first_byte, extra_bytes);
            const uint64_t id = next_random();
            const uint32_t total = (uint32_t)ring_packet_bytes(extra_bytes, payload_bytes);
            const enum ring_status status = ring_write(&pair.writer, RING_PACKET_IN_BAND, (uint16_t)below(2), id, extra,
                                                       extra_bytes, payload, payload_bytes);
            EXPECT(status == (used + total <= pair.size_bytes - 8 ? RING_OK : RING_FULL));
            if (status == RING_OK) {
                used += total;
                model[tail++ % MODEL_PACKETS] = (struct expected){id, extra_bytes, payload_bytes, first_byte};
            }
            ring_publish(&pair.writer);
            free(payload);
            free(extra);
        } else {
            const enum ring_status status = ring_peek(&pair.reader, &packet);
            EXPECT(status == (head == tail ? RING_EMPTY : RING_OK));
            if (status == RING_OK) {
                const struct expected *expected = &model[head++ % MODEL_PACKETS];
                EXPECT(packet.transaction_id == expected->transaction_id && packet.extra_bytes == expected->extra_bytes
                       && packet.payload_bytes == ring_align8(expected->payload_bytes));
                uint8_t *payload = malloc(packet.payload_bytes + 1);
                EXPECT(payload);
                ring_copy_out(&pair.reader, packet.payload_at, payload, packet.payload_bytes);
                for (uint32_t i = 0; i < packet.payload_bytes; i++)
                    EXPECT(payload[i] == (i < expected->payload_bytes ? expected->first_byte : 0));
                free(payload);
                ring_hold(&pair.reader, &packet);
                held_bytes += packet.total_bytes;
            }
            if (below(3) == 0) {
                ring_release(&pair.reader);
                used -= held_bytes;
                held_bytes = 0;
            }
        }
    }
    free(pair.memory);
}

static void hostile(void)
{
    struct pair pair = new_pair();
    struct ring_packet packet;
    for (int step = 0; step < STEPS; step++) {
        const uint32_t at = below(2) ? below(72) : RING_PAGE_BYTES + below(pair.size_bytes);
        pair.memory[at] = (uint8_t)(below(3) ? next_random() : below(16));
        if (below(4) == 0) { /* an index that passes, so that what is behind it gets its share of damage */
            const uint32_t index = 8 * below(pair.size_bytes / 8);
            memcpy(pair.memory, &index, 4);
        }
        if (below(8) == 0) {
            const uint64_t descriptor = ring_descriptor_word((uint16_t)(6 + below(6)), below(6), below(600), (uint16_t)below(2));
            memcpy(pair.memory + RING_PAGE_BYTES + pair.reader.next_out, &descriptor, 8);
        }
        if (ring_peek(&pair.reader, &packet) == RING_OK) {
            uint8_t *extra = malloc(packet.extra_bytes + 1), *payload = malloc(packet.payload_bytes + 1);
            EXPECT(extra && payload);
            ring_copy_out(&pair.reader, packet.extra_at, extra, packet.extra_bytes);
            ring_copy_out(&pair.reader, packet.payload_at, payload, packet.payload_bytes);
            ring_extra_is_valid(packet.type, extra, packet.extra_bytes);
            free(extra);
            free(payload);
            ring_hold(&pair.reader, &packet);
        }
        ring_release(&pair.reader);
        uint8_t small[40] = {0};
        if (ring_write(&pair.writer, RING_PACKET_IN_BAND, 0, 0, NULL, 0, small, below(sizeof small)) == RING_OK)
            ring_publish(&pair.writer);
        else
            ring_want_space(&pair.writer, 64);
        EXPECT(pair.writer.staged_in < pair.size_bytes && pair.reader.next_out < pair.size_bytes);
    }
    free(pair.memory);
}

static void guest_memory(void)
{
    const uint32_t max_ranges = 1 + below(8);
    struct gpa_table table = {.ranges = calloc(max_ranges, sizeof(struct gpa_range)), .max_ranges = max_ranges};
    EXPECT(table.ranges);
    for (int step = 0; step < 300; step++) {
        const uint64_t first = below(4) ? below(64) : UINT64_MAX - below(4) * (uint64_t)below(1 << 30);
        const struct gpa_range range = {.first_pfn = first, .pages = below(9), .writable = below(2)};
        const int64_t known = gpa_index_of(&table, first);
        const enum gpa_status status = gpa_add(&table, &range);
        if (known >= 0) {
            EXPECT(status != GPA_OK);
            gpa_remove_at(&table, (uint32_t)known);
        }
        EXPECT(table.count <= max_ranges);
        for (uint32_t i = 1; i < table.count; i++)
            EXPECT(table.ranges[i - 1].first_pfn + table.ranges[i - 1].pages <= table.ranges[i].first_pfn);
        const size_t pfn_count = below(6);
        uint64_t *pfns = malloc(pfn_count * 8 + 1);
        struct gpa_span *spans = malloc(pfn_count * sizeof *spans + 1);
        EXPECT(pfns && spans);
        for (size_t i = 0; i < pfn_count; i++)
            pfns[i] = below(16) ? below(70) : next_random();
        size_t span_count = 0;
        const uint32_t offset = below(5000), count = below(4) ? below(6 * 4096) : (uint32_t)next_random();
        if (gpa_resolve(&table, offset, count, pfns, pfn_count, below(2), spans, &span_count) == GPA_OK) {
            uint64_t bytes = 0;
            EXPECT(span_count <= pfn_count);
            for (size_t i = 0; i < span_count; i++) {
                EXPECT(spans[i].offset_bytes + spans[i].bytes <= spans[i].range->pages * GPA_PAGE_BYTES);
                bytes += spans[i].bytes;
            }
            EXPECT(bytes == count);
        }
        free(pfns);
        free(spans);
    }
    free(table.ranges);
}

static void pages_and_measures(void)
{
    uint8_t *page = aligned_alloc(SYNIC_PAGE_BYTES, SYNIC_PAGE_BYTES);
    struct histogram *histogram = calloc(1, sizeof *histogram), *other = calloc(1, sizeof *other);
    struct synic_message message;
    uint16_t numbers[SYNIC_FLAGS_PER_SINT];
    bool eom_owed;
    EXPECT(page && histogram && other);
    for (uint32_t i = 0; i < SYNIC_PAGE_BYTES; i++)
        page[i] = (uint8_t)next_random();
    for (uint32_t sint = 0; sint < SYNIC_SINTS; sint++) {
        if (synic_take_message(page, sint, &message, &eom_owed))
            EXPECT(message.payload_bytes <= SYNIC_PAYLOAD_MAX_BYTES);
        message = (struct synic_message){.type = 1, .payload_bytes = below(SYNIC_PAYLOAD_MAX_BYTES + 1)};
        EXPECT(synic_post_message(page, sint, &message));
        EXPECT(!synic_post_message(page, sint, &message));
        synic_flag_set(page, below(SYNIC_FLAGS));
        synic_flag_take(page, below(SYNIC_FLAGS));
        const uint32_t count = synic_flags_take_all(page, sint, numbers);
        EXPECT(count <= SYNIC_FLAGS_PER_SINT && synic_flags_take_all(page, sint, numbers) == 0);
    }
    for (int i = 0; i < 500; i++) {
        const uint64_t value = next_random() >> below(64);
        EXPECT(histogram_bucket_of(value) < HISTOGRAM_BUCKETS && histogram_top_of(histogram_bucket_of(value)) >= value);
        histogram_record(i % 2 ? histogram : other, value);
    }
    histogram_record(histogram, UINT64_MAX);
    histogram_merge(histogram, other);
    for (int percent = 0; percent <= 100; percent++)
        EXPECT(histogram_percentile(histogram, percent) <= histogram->maximum);
    const size_t bytes = below(9000), shift = below(8);
    uint8_t *data = malloc(bytes + shift + 1);
    EXPECT(data);
    for (size_t i = 0; i < bytes + shift; i++)
        data[i] = (uint8_t)next_random();
    EXPECT(crc32c(7, data + shift, bytes) == crc32c_portable(7, data + shift, bytes));
    free(data);
    free(page);
    free(histogram);
    free(other);
}

int main(int argc, char **argv)
{
    const long seeds = argc > 1 ? atol(argv[1]) : 50;
    const uint64_t first = argc > 2 ? strtoull(argv[2], NULL, 0) : 1;
    crc32c_prepare();
    for (uint64_t seed = first; seed < first + (uint64_t)seeds; seed++) {
        random_state = seed * 0x9E3779B97F4A7C15u | 1;
        honest();
        hostile();
        guest_memory();
        pages_and_measures();
    }
    printf("%ld schedules from seed %llu: no fault\n", seeds, (unsigned long long)first);
    return 0;
}
