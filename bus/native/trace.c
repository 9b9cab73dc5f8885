#include "trace.h"

#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "clock.h"

#define NAMES_AT TRACE_PAGE_BYTES
#define TRACKS_AT (NAMES_AT + TRACE_NAMES * (uint32_t)sizeof(struct trace_name))
_Static_assert(TRACKS_AT == 5 * TRACE_PAGE_BYTES, "as drawn in trace.h");

/* The calling thread's place in the trace that it last wrote to. */
struct own_track {
    uint64_t serial;           /* of that trace */
    struct trace_track *track; /* NULL: it got none */
    uint64_t written;
};

/* A shared library's own few bytes: looked up without a call. */
static __thread struct own_track own __attribute__((tls_model("initial-exec")));

static uint64_t ticks_now(bool uses_tsc)
{
#if defined(__x86_64__)
    if (uses_tsc)
        return __builtin_ia32_rdtsc();
#endif
    return clock_now_ns();
}

static size_t track_bytes(uint32_t stamps)
{
    return TRACE_PAGE_BYTES + (size_t)stamps * sizeof(struct trace_stamp);
}

size_t trace_bytes(uint32_t tracks, uint32_t stamps)
{
    return TRACKS_AT + tracks * track_bytes(stamps);
}

int trace_attach(struct trace *trace, void *memory, size_t bytes)
{
    static _Atomic uint64_t serials;
    struct trace_header *header = memory;
    if (bytes < TRACKS_AT || header->magic != TRACE_MAGIC || header->version != TRACE_VERSION)
        return -1;
    const uint32_t tracks = header->tracks, stamps = header->stamps;
    if (tracks == 0 || tracks > TRACE_TRACKS_MAX || stamps < TRACE_STAMPS_MIN || stamps > TRACE_STAMPS_MAX
        || (stamps & (stamps - 1)) != 0 || trace_bytes(tracks, stamps) > bytes)
        return -1;
    *trace = (struct trace){
        .header = header,
        .memory = memory,
        .serial = atomic_fetch_add(&serials, 1) + 1,
        .tracks = tracks,
        .stamps = stamps,
        .generation = atomic_fetch_add(&header->generations, 1) + 1,
        .uses_tsc = header->uses_tsc != 0,
    };
    return 0;
}

/* A track for this thread, for as long as the trace lasts. */
static void claim_track(const struct trace *trace)
{
    own.serial = trace->serial;
    own.track = NULL;
    own.written = 0;
    const uint32_t number = atomic_fetch_add(&trace->header->tracks_used, 1);
    if (number >= trace->tracks) {
        atomic_store(&trace->header->tracks_used, trace->tracks);
        return;
    }
    own.track = (struct trace_track *)(trace->memory + TRACKS_AT + number * track_bytes(trace->stamps));
    own.track->thread = (uint32_t)syscall(SYS_gettid);
    own.track->generation = trace->generation;
}

/* ORDER stamps: `written` is stored after the stamp, with a release: a reader that loads it finds the stamps before it
 *   whole. It then loads it again, behind its copy, and throws away what may have been overwritten meanwhile. */
void trace_write(const struct trace *trace, uint64_t channel, enum trace_hop hop, uint64_t transaction_id)
{
    if (!atomic_load_explicit(&trace->header->enabled, memory_order_relaxed))
        return;
    if (__builtin_expect(own.serial != trace->serial, 0))
        claim_track(trace);
    struct trace_track *const track = own.track;
    if (__builtin_expect(track == NULL, 0)) {
        atomic_fetch_add_explicit(&trace->header->untracked, 1, memory_order_relaxed);
        return;
    }
    struct trace_stamp *const circle = (struct trace_stamp *)((uint8_t *)track + TRACE_PAGE_BYTES);
    circle[own.written & (trace->stamps - 1)] = (struct trace_stamp){
        .ticks = ticks_now(trace->uses_tsc), .channel = channel, .transaction_id = transaction_id, .hop = (uint32_t)hop};
    atomic_store_explicit(&track->written, ++own.written, memory_order_release);
}

int trace_name_channel(const struct trace *trace, uint64_t channel, uint64_t port, const char *text)
{
    const uint32_t number = atomic_load(&trace->header->names_used);
    struct trace_name *const names = (struct trace_name *)(trace->memory + NAMES_AT);
    if (number > TRACE_NAMES)
        return -1;
    for (uint32_t i = 0; i < number; i++)
        if (names[i].channel == channel && names[i].port == port && strncmp(names[i].text, text, TRACE_NAME_BYTES - 1) == 0)
            return 0;
    if (number == TRACE_NAMES)
        return -1;
    struct trace_name *name = names + number;
    name->channel = channel;
    name->port = port;
    strncpy(name->text, text, TRACE_NAME_BYTES - 1);
    atomic_store_explicit(&trace->header->names_used, number + 1, memory_order_release);
    return 0;
}
