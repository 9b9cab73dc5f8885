/* The reader's side of a ring: look at packets, copy them out, give them back. Caller of all: this ring's one consumer. */
#ifndef PARTVISOR_RING_READER_H
#define PARTVISOR_RING_READER_H

#include "ring_layout.h"

/* The reader's private side. */
struct ring_reader {
    struct ring_header *header;
    const uint8_t *data;
    uint32_t size_bytes;
    uint32_t next_out;     /* end of what is held: where the next packet starts */
    uint32_t released_out; /* what the writer has been told: the authority; the header has a copy of it */
    uint32_t cached_in;    /* the writer's index when last looked at */
};

/* A packet found by ring_peek(): the checked copy of its descriptor, and where its parts are. */
struct ring_packet {
    uint64_t transaction_id;
    uint16_t type, flags;
    uint32_t extra_at, extra_bytes;
    uint32_t payload_at, payload_bytes;
    uint32_t total_bytes; /* with descriptor and trailer */
};

/* As ring_writer_attach(). */
enum ring_status ring_reader_attach(struct ring_reader *reader, void *header_page, uint32_t size_bytes);

void ring_copy_out_split(const struct ring_reader *reader, uint32_t at, void *target, uint32_t bytes);

/* Checks the copy of an extra header (from packet byte 16 on) against its type's rules. False: the packet is corrupt. */
bool ring_extra_is_valid(uint16_t type, const void *extra, uint32_t extra_bytes);

static inline uint32_t ring_readable_cached(const struct ring_reader *reader)
{
    return ring_distance(reader->next_out, reader->cached_in, reader->size_bytes);
}

/* Look at the writer's index again. Pairs with the release in ring_publish_index(). */
static inline enum ring_status ring_reader_refresh(struct ring_reader *reader)
{
    const uint32_t in = atomic_load_explicit(&reader->header->in, memory_order_acquire);
    if (!ring_index_is_valid(in, reader->size_bytes))
        return RING_CORRUPT;
    reader->cached_in = in;
    return in == reader->next_out ? RING_EMPTY : RING_OK;
}

/* Is there a packet behind what is held? */
static inline enum ring_status ring_poll(struct ring_reader *reader)
{
    return reader->cached_in != reader->next_out ? RING_OK : ring_reader_refresh(reader);
}

/* Copy and check the descriptor of the next packet, without moving past it. RING_OK, RING_EMPTY or RING_CORRUPT. */
static inline enum ring_status ring_peek(struct ring_reader *reader, struct ring_packet *packet)
{
    if (reader->cached_in == reader->next_out) {
        const enum ring_status status = ring_reader_refresh(reader);
        if (status != RING_OK)
            return status;
    }
    const uint32_t size_bytes = reader->size_bytes, start = reader->next_out;
    const uint32_t readable = ring_readable_cached(reader);
    if (readable < RING_DESCRIPTOR_BYTES + RING_TRAILER_BYTES)
        return RING_CORRUPT;
    /* Both words are read here and nowhere else: read again, the peer's memory may say something else. */
    const volatile uint64_t *words = (const volatile uint64_t *)(reader->data + start);
    const uint64_t word = words[0];
    const uint64_t transaction_id = *(start + 8 == size_bytes ? (const volatile uint64_t *)reader->data : words + 1);
    const uint16_t type = (uint16_t)word, flags = (uint16_t)(word >> 48);
    const uint32_t offset = (uint32_t)(word >> 16 & 0xFFFF) * 8, length = (uint32_t)(word >> 32 & 0xFFFF) * 8;
    if (length + RING_TRAILER_BYTES > readable || offset > length || (flags & ~RING_FLAG_COMPLETION) != 0)
        return RING_CORRUPT;
    uint32_t least_offset = RING_DESCRIPTOR_BYTES;
    if (type == RING_PACKET_TRANSFER_PAGES || type == RING_PACKET_GPA_DIRECT)
        least_offset += 8; /* the fixed part of their extra header */
    else if (type != RING_PACKET_IN_BAND && type != RING_PACKET_COMPLETION)
        return RING_CORRUPT;
    if (offset < least_offset)
        return RING_CORRUPT;
    packet->transaction_id = transaction_id;
    packet->type = type;
    packet->flags = flags;
    packet->extra_at = ring_forward(start, RING_DESCRIPTOR_BYTES, size_bytes);
    packet->extra_bytes = offset - RING_DESCRIPTOR_BYTES;
    packet->payload_at = ring_forward(start, offset, size_bytes);
    packet->payload_bytes = length - offset;
    packet->total_bytes = length + RING_TRAILER_BYTES;
    return RING_OK;
}

/* Copy bytes of a peeked packet out, once. at: one of the packet's offsets. */
static inline void ring_copy_out(const struct ring_reader *reader, uint32_t at, void *target, uint32_t bytes)
{
    if (at + bytes <= reader->size_bytes)
        ring_copy(target, reader->data + at, bytes);
    else
        ring_copy_out_split(reader, at, target, bytes);
}

/* Hold a peeked packet: the next peek looks behind it. */
static inline void ring_hold(struct ring_reader *reader, const struct ring_packet *packet)
{
    reader->next_out = ring_forward(reader->next_out, packet->total_bytes, reader->size_bytes);
}

/* First half of releasing: give everything held back to the writer. A full fence must follow, then ring_release_signals().
 * ORDER reuse: the release pairs with the acquire in ring_writer_refresh(); all our reads of those bytes are before it. */
static inline uint32_t ring_release_index(struct ring_reader *reader)
{
    const uint32_t previous_out = reader->released_out;
    reader->released_out = reader->next_out;
    atomic_store_explicit(&reader->header->out, reader->released_out, memory_order_release);
    return previous_out;
}

/* Second half's rare part: the writer waits for space. True: it has just become enough. */
bool ring_release_signals_writer(struct ring_reader *reader, uint32_t previous_out, uint32_t pending_bytes);

/* Second half, behind the fence. True: signal the writer now. */
static inline bool ring_release_signals(struct ring_reader *reader, uint32_t previous_out)
{
    const uint32_t pending = atomic_load_explicit(&reader->header->pending_send_bytes, memory_order_acquire);
    return __builtin_expect(pending >= 8, 0) && ring_release_signals_writer(reader, previous_out, pending);
}

/* Release everything held; true: signal the writer now. The fence is ORDER space, see ring_want_space(). */
static inline bool ring_release(struct ring_reader *reader)
{
    if (reader->released_out == reader->next_out)
        return false;
    const uint32_t previous_out = ring_release_index(reader);
    RING_FULL_FENCE();
    return ring_release_signals(reader, previous_out);
}

static inline void ring_mask(struct ring_reader *reader)
{
    atomic_store_explicit(&reader->header->interrupt_mask, 1, memory_order_relaxed);
}

/* Ask to be signalled for new data, then look again. RING_EMPTY: the caller may sleep. Otherwise it masks and goes on.
 * ORDER sleep: see ring_publish(). */
static inline enum ring_status ring_unmask(struct ring_reader *reader)
{
    atomic_store_explicit(&reader->header->interrupt_mask, 0, memory_order_relaxed);
    RING_FULL_FENCE();
    return ring_reader_refresh(reader);
}

#endif
