/* A ring's header page and its packets, as both sides see them, and how to reckon with offsets. ring.h has the overview. */
#ifndef PARTVISOR_RING_LAYOUT_H
#define PARTVISOR_RING_LAYOUT_H

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

#endif
