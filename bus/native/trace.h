/* Stamps: when a request passed a hop, written into memory that others read. No Python.
 *
 * A trace is one process's: a header page, names, and tracks. Each thread writes into a track of its own, in a circle, so a
 * stamp takes no lock and never waits; what a reader comes too late for is overwritten, and can be counted. A process that
 * takes over from another goes on in the same trace, in new tracks: these carry its generation.
 *
 *   page 0         struct trace_header
 *   pages 1..4     struct trace_name, TRACE_NAMES of them
 *   from page 5    tracks: a page that begins with struct trace_track, then the stamps
 *
 * The reader trusts nothing in it: the process that writes may be hostile. Times are the TSC's, which all CPUs share, or
 * CLOCK_MONOTONIC's where there is none. Where nobody traces, a stamp is one look at a pointer that is NULL. */
#ifndef PARTVISOR_TRACE_H
#define PARTVISOR_TRACE_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define TRACE_MAGIC 0x50565452u
#define TRACE_VERSION 1u
#define TRACE_PAGE_BYTES 4096u
#define TRACE_NAMES 256u
#define TRACE_NAME_BYTES 48u
#define TRACE_TRACKS_MAX 256u
#define TRACE_STAMPS_MAX 1048576u /* of one track; a power of two, and at least 128: whole pages */
#define TRACE_STAMPS_MIN 128u

#define TRACE_SERVER (1ull << 63) /* in a channel's number: stamped by who serves it */
#define TRACE_ROUTE (1ull << 62)  /* it is a route of the hypervisor: port owner << 32 | port */

/* Always stamped before what it tells of can be seen by the other side, so that times never run backwards over a hop;
 * but for those that tell of having seen something. */
enum trace_hop {
    TRACE_CALL = 1,      /* client: a program asked for the exchange */
    TRACE_WRITE,         /* client: begins to write the request into the ring */
    TRACE_PUBLISH,       /* either: is about to publish what was written */
    TRACE_SIGNAL,        /* either: is about to ring the peer's doorbell */
    TRACE_BROKER_WAKE,   /* hypervisor: saw the kick */
    TRACE_FLAG_SET,      /* hypervisor: has set the flag, and is about to ring */
    TRACE_WAKE,          /* either: slept, and is awake */
    TRACE_TAKE,          /* server: has found the request in the ring */
    TRACE_BACKEND_BEGIN, /* server: has understood it, and turns to the device */
    TRACE_BACKEND_END,   /* server: the device is done */
    TRACE_ANSWER,        /* server: begins to write the completion */
    TRACE_RECEIVE,       /* client: has found the completion in the ring */
    TRACE_RETURN,        /* client: the program has its answer */
    TRACE_HOPS,
};

struct trace_stamp {
    uint64_t ticks;
    uint64_t channel;
    uint64_t transaction_id; /* 0 where the hop knows none */
    uint32_t hop;
    uint32_t reserved;
};
_Static_assert(sizeof(struct trace_stamp) == 32, "bus/trace.py says the same");

struct trace_track {
    _Atomic uint64_t written; /* stamps so far; the last of them are in the circle */
    uint32_t thread;          /* its number, of gettid() */
    uint32_t generation;      /* of its process */
};
_Static_assert(sizeof(struct trace_track) == 16, "bus/trace.py says the same");

/* What a channel is, and on which port its interrupts arrive here. */
struct trace_name {
    uint64_t channel;
    uint64_t port; /* owner << 32 | port */
    char text[TRACE_NAME_BYTES];
};
_Static_assert(sizeof(struct trace_name) == 64, "bus/trace.py says the same");

struct trace_header {
    uint32_t magic, version;
    uint32_t uses_tsc;
    uint32_t tracks, stamps; /* how many tracks; how many stamps each */
    _Atomic uint32_t enabled;
    _Atomic uint32_t tracks_used, names_used;
    _Atomic uint64_t untracked; /* stamps of threads for which there was no track */
    _Atomic uint32_t generations; /* processes that have had this trace, one after the other */
    uint32_t reserved;
};
_Static_assert(sizeof(struct trace_header) == 48, "bus/trace.py says the same");

/* This process's view. Sizes are its own copies. */
struct trace {
    struct trace_header *header;
    uint8_t *memory;
    uint64_t serial; /* no other trace of this process ever has it; never 0 */
    uint32_t tracks, stamps;
    uint32_t generation; /* ours, from 1 */
    bool uses_tsc;
};

/* Another generation begins. -1: the memory is none of these, or too short. */
int trace_attach(struct trace *trace, void *memory, size_t bytes);

size_t trace_bytes(uint32_t tracks, uint32_t stamps);

/* The stamp itself. Any thread. */
void trace_write(const struct trace *trace, uint64_t channel, enum trace_hop hop, uint64_t transaction_id);

/* What a predecessor wrote is not written again. -1: all names are in use. One thread at a time. */
int trace_name_channel(const struct trace *trace, uint64_t channel, uint64_t port, const char *text);

#ifdef PARTVISOR_WITHOUT_TRACE
#define TRACE_COMPILED false /* only the benchmark leaves it out, to find out what it costs */
#else
#define TRACE_COMPILED true
#endif

/* trace: NULL where nobody traces. */
static inline void trace_stamp(const struct trace *trace, uint64_t channel, enum trace_hop hop, uint64_t transaction_id)
{
    if (TRACE_COMPILED && __builtin_expect(trace != NULL, 0))
        trace_write(trace, channel, hop, transaction_id);
}

#endif
