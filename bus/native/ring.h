/* One VMBus ring in shared memory: wire layout, the writer's side, the reader's side. No Python, no system call.
 *
 *   @0    write_index       owned by the writer          header page: 4096 bytes
 *   @4    read_index        owned by the reader
 *   @8    interrupt_mask    owned by the reader; non-zero: do not signal me for new data
 *   @12   pending_send_sz   owned by the writer; free bytes wanted before the reader signals it, 0: none
 *   @64   feature bits      owned by the writer; bit 0: the writer uses pending_send_sz
 *   @4096 data              whole pages, circular
 *
 * The peer is another process and hostile: everything that it can write is checked at every load, a descriptor is copied
 * once and only the copy is used, and each side keeps its own index privately, so that scribbling on it changes nothing.
 *
 * The hot functions are inline: a call costs as much as the work that they do.
 *
 * Sources: Linux include/linux/hyperv.h and drivers/hv/ring_buffer.c; openvmm vm/devices/vmbus/vmbus_ring. */
#ifndef PARTVISOR_RING_H
#define PARTVISOR_RING_H

#include <assert.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

/* A model checker compiles this very header, with atomics of its own: tests/native/model_atomics.hpp. */
#ifdef RING_MODEL_ATOMICS
#include RING_MODEL_ATOMICS
#else
#include <stdatomic.h>
typedef _Atomic uint32_t ring_field;
#endif

#define RING_PAGE_BYTES 4096u
#define RING_DESCRIPTOR_BYTES 16u
#define RING_TRAILER_BYTES 8u
#define RING_FEATURE_PENDING_SEND 1u
#define RING_FLAG_COMPLETION 1u
#define RING_MAX_DATA_BYTES 0x40000000u    /* 1 GiB: sums of two offsets stay inside 32 bits */
#define RING_MAX_LENGTH8 0xFFFFu           /* the descriptor's length fields are 16 bits wide */
#define RING_CACHE_LINE_BYTES 64u

/* Compiled with WITHOUT_FENCE, the ring loses wake-ups; the stress test shows that it notices. */
#ifdef WITHOUT_FENCE
#define RING_FULL_FENCE() atomic_signal_fence(memory_order_seq_cst)
#else
#define RING_FULL_FENCE() atomic_thread_fence(memory_order_seq_cst)
#endif

enum ring_packet_type {
    RING_PACKET_IN_BAND = 6,
    RING_PACKET_TRANSFER_PAGES = 7,
    RING_PACKET_GPA_DIRECT = 9,
    RING_PACKET_COMPLETION = 0xB,
};

enum ring_status {
    RING_OK = 0,
    RING_EMPTY,     /* nothing to read now */
    RING_FULL,      /* no room now; nothing was written */
    RING_TOO_LARGE, /* could never fit into this ring: the caller's mistake */
    RING_CORRUPT,   /* the peer broke the rules: the channel is finished */
};

struct ring_header {
    ring_field in;
    ring_field out;
    ring_field interrupt_mask;
    ring_field pending_send_bytes;
    uint32_t reserved[12];
    ring_field feature_bits;
    uint8_t pad[4028];
};

#ifndef RING_MODEL_ATOMICS
_Static_assert(sizeof(struct ring_header) == RING_PAGE_BYTES, "the header is one page");
_Static_assert(offsetof(struct ring_header, out) == 4, "wire offset");
_Static_assert(offsetof(struct ring_header, interrupt_mask) == 8, "wire offset");
_Static_assert(offsetof(struct ring_header, pending_send_bytes) == 12, "wire offset");
_Static_assert(offsetof(struct ring_header, feature_bits) == 64, "wire offset");
_Static_assert(ATOMIC_INT_LOCK_FREE == 2, "the fields are shared between processes: a lock would not be");
#endif

/* The first 8 bytes of a packet, as one number: u16 type, u16 offset8 (packet start to payload), u16 length8 (descriptor +
 * extra header + payload; the trailer is not counted), u16 flags; both lengths in 8-byte units. The transaction id follows.
 * Whole words, because a 16-byte load just behind four 2-byte stores waits until those have left the store buffer. */
#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "the wire is little-endian and is not swapped here"
#endif

static inline uint64_t ring_descriptor_word(uint16_t type, uint32_t offset8, uint32_t length8, uint16_t flags)
{
    return type | (uint64_t)offset8 << 16 | (uint64_t)length8 << 32 | (uint64_t)flags << 48;
}

/* The writer's private side. Offsets are bytes into the data area, below size_bytes, multiples of 8. */
struct ring_writer {
    struct ring_header *header;
    uint8_t *data;
    uint32_t size_bytes;
    uint32_t staged_in;    /* end of what is written */
    uint32_t published_in; /* end of what the reader may see: the authority; the header has a copy of it */
    uint32_t cached_out;   /* the reader's index when last looked at: free space can only have grown since */
};

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

static inline uint32_t ring_align8(uint32_t bytes)
{
    return (bytes + 7u) & ~7u;
}

/* Distance from one offset to another, going forward. */
static inline uint32_t ring_distance(uint32_t from, uint32_t to, uint32_t size_bytes)
{
    return to >= from ? to - from : to + size_bytes - from;
}

static inline uint32_t ring_forward(uint32_t offset, uint32_t bytes, uint32_t size_bytes)
{
    offset += bytes;
    return offset >= size_bytes ? offset - size_bytes : offset;
}

static inline bool ring_index_is_valid(uint32_t index, uint32_t size_bytes)
{
    return index < size_bytes && index % 8 == 0;
}

/* Bytes that a packet of these parts takes in the ring. The sum is 64 bits wide: no caller can make it wrap. */
static inline uint64_t ring_packet_bytes(uint64_t extra_bytes, uint64_t payload_bytes)
{
    return RING_DESCRIPTOR_BYTES + extra_bytes + ((payload_bytes + 7u) & ~(uint64_t)7u) + RING_TRAILER_BYTES;
}

/* The largest packet that can ever be written: two units less than the ring, as the strictest peer wants it. */
static inline uint32_t ring_largest_packet_bytes(uint32_t size_bytes)
{
    const uint32_t by_size = size_bytes - 16u;
    const uint32_t by_length = RING_MAX_LENGTH8 * 8u + RING_TRAILER_BYTES;
    return by_size < by_length ? by_size : by_length;
}

/* Attach to an existing ring, or to a zeroed one. RING_CORRUPT when our own side's index in the header is impossible.
 * size_bytes: of the data area, whole pages, at most RING_MAX_DATA_BYTES. */
enum ring_status ring_writer_attach(struct ring_writer *writer, void *header_page, uint32_t size_bytes);
enum ring_status ring_reader_attach(struct ring_reader *reader, void *header_page, uint32_t size_bytes);

void ring_copy_in_split(struct ring_writer *writer, uint32_t at, const void *source, uint32_t bytes);
void ring_copy_out_split(const struct ring_reader *reader, uint32_t at, void *target, uint32_t bytes);
enum ring_status ring_write_split(struct ring_writer *writer, const uint64_t descriptor[2],
                                  const void *extra, uint32_t extra_bytes, const void *payload, uint32_t payload_bytes);

/* Checks the copy of an extra header (from packet byte 16 on) against its type's rules. False: the packet is corrupt. */
bool ring_extra_is_valid(uint16_t type, const void *extra, uint32_t extra_bytes);

/* Small copies inline: most packets are 64 bytes, for which a call to memcpy costs more than the copy. */
static inline void ring_copy(void *target, const void *source, uint32_t bytes)
{
    uint8_t *to = (uint8_t *)target;
    const uint8_t *from = (const uint8_t *)source;
    if (bytes > 256) {
        memcpy(to, from, bytes);
        return;
    }
    for (; bytes >= 32; bytes -= 32, to += 32, from += 32)
        memcpy(to, from, 32);
    if (bytes & 16) {
        memcpy(to, from, 16);
        to += 16;
        from += 16;
    }
    if (bytes & 8) {
        memcpy(to, from, 8);
        to += 8;
        from += 8;
    }
    if (bytes & 7) {
        if (bytes & 4) {
            memcpy(to, from, 4);
            to += 4;
            from += 4;
        }
        if (bytes & 2) {
            memcpy(to, from, 2);
            to += 2;
            from += 2;
        }
        if (bytes & 1)
            *to = *from;
    }
}

/* ---- the writer's side. Caller of all: this ring's one producer. ---- */

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

/* ---- the reader's side. Caller of all: this ring's one consumer. ---- */

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
