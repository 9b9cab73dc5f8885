/* One end of a channel: a ring to write, a ring to read, the peer's doorbell, our own, and how to wait. No Python.
 *
 * Waiting is halt polling in three phases: spin, give the processor away (sched_yield), sleep. Only a sleeper asks for an
 * interrupt: the mask of the incoming ring stays set until the last look before sleeping.
 *
 * Sleeping is epoll_wait() on a private epoll that watches our doorbell edge-triggered, and never reads it:
 *  - one system call a sleep, as a blocking read() would be, while the doorbell stays O_NONBLOCK for whoever writes it;
 *  - every write is an edge, whatever the counter holds, so a count left over wakes nobody twice;
 *  - several sleepers may share one line, for none takes the count away from another. */
#ifndef PARTVISOR_ENDPOINT_H
#define PARTVISOR_ENDPOINT_H

#include "ring.h"
#include "seam.h"
#include "trace.h"

#define ENDPOINT_FOREVER UINT64_MAX
#define ENDPOINT_DEFAULT_SPIN_NS 2000u
#define ENDPOINT_DEFAULT_YIELD_NS 20000u
#define ENDPOINT_MAX_PHASE_NS 5000000u /* a limit above would delay Ctrl-C */
#define ENDPOINT_LOCKED_SPIN_NS 2000u  /* spin so long at most while holding the interpreter's lock */
#define ENDPOINT_SLICE_NS 5000000u  /* longest stretch without a look at signals, when we do not sleep */
#define ENDPOINT_PROBE_WAITS 64u    /* one wait in so many tries the full limits again */
#define ENDPOINT_CLOSE_TRIES 200u   /* to free a sender that a hostile peer made block and may make block again */
#define ENDPOINT_CLOSE_PAUSE_NS 500000u

enum wait_mode { WAIT_ADAPTIVE, WAIT_SPIN, WAIT_BLOCK };

struct wait_policy {
    enum wait_mode mode;
    uint32_t spin_ns, yield_ns; /* upper limits of the two phases */
};

enum wait_for { WAIT_FOR_DATA, WAIT_FOR_SPACE };

enum wait_result {
    WAIT_NOT_YET = 0,
    WAIT_READY,
    WAIT_TIMEOUT,
    WAIT_INTERRUPTED, /* a signal arrived, or a slice is over: look at signals, then go on with the same progress */
    WAIT_CLOSED,
    WAIT_CORRUPT,
};

/* What self-tuning has learnt; one for each thing that can be waited for. */
struct wait_tuning {
    uint32_t spin_ns, yield_ns; /* current limits */
    uint32_t waits;
};

/* Where one wait stands, so that it can be left for a signal and gone on with. */
struct wait_progress {
    uint32_t spun_ns; /* so long in endpoint_spin() */
    bool yielded, slept;
};

struct endpoint_statistics {
    uint64_t packets_sent, packets_received, bytes_sent, bytes_received;
    uint64_t signals_sent, signals_suppressed;
    uint64_t waits_spun, waits_yielded, waits_blocked;
    uint64_t ring_full, unknown_ids;
};

/* Where a server stands, in memory that outlives its process. A successor that attaches with the same journal finds out
 * whether the last batch of answers was published. */
struct endpoint_journal {
    _Atomic uint64_t commit;    /* high half: end of the requests answered; low half: end of the answers */
    _Atomic uint32_t executing; /* the server's own: requests are being executed whose answers are not published */
};

struct service_budget;

struct endpoint {
    struct ring_writer writer;
    struct ring_reader reader;
    int signal_fd;       /* eventfd, owned by the endpoint; -1: never signal */
    bool signal_may_block; /* it was not O_NONBLOCK when we got it */
    int wait_fd;         /* eventfd, owned by the endpoint; -1: spin only */
    int wait_epoll_fd;
    bool is_observed;                 /* there is one of these three; set by endpoint_observe() */
    struct endpoint_journal *journal; /* or NULL: nobody takes over */
    struct seam *seam;                /* or NULL: nobody tests that */
    const struct trace *trace;        /* or NULL: nobody traces */
    uint64_t trace_channel, traced_id; /* the channel's number there; the last request or answer that was written */
    _Atomic(void *) flag_page; /* the SIEF page of the VP that our interrupts go to, or NULL */
    uint32_t flag;
    struct wait_policy policy;
    struct wait_tuning data_tuning, space_tuning;
    struct endpoint_statistics statistics;
    _Atomic uint32_t closed;
    _Atomic uint32_t signalling; /* a thread of ours is in the doorbell's write() */
    _Atomic uint32_t sleepers;   /* threads of ours between their last look and their wake-up */
    _Atomic uint32_t has_leader; /* one of them is in epoll_wait(), the others wait for it on `generation` */
    _Atomic uint32_t generation; /* counts leaders that came back */
    struct service_budget *budget; /* of the peer, which we serve, or NULL: it may have all it wants. service_budget.h */
    uintptr_t served_by;           /* the thread that was charged last; 0: none yet */
    uint64_t served_cpu_ns;        /* its processor time then */
    _Atomic uint32_t rests;        /* it pays a debt off */
};

/* Both rings must be attached already. The descriptors are duplicated, so the caller may close its own.
 * 0, or an errno value with nothing left open. */
int endpoint_open(struct endpoint *endpoint, int signal_fd, int wait_fd, const struct wait_policy *policy);

/* Closes the descriptors. No thread may be inside. */
void endpoint_destroy(struct endpoint *endpoint);

/* Ends every wait, now and later; returns before the sleepers have left. Any thread. Sleeps, for a bounded time, only to
 * free a sender that the peer made block. */
void endpoint_close(struct endpoint *endpoint);

/* Our interrupts go to another VP: the same flag, in its page, which stays mapped as long as the endpoint. Any thread. */
void endpoint_aim(struct endpoint *endpoint, void *flag_page);

/* Ring the peer's doorbell. Never blocks on a doorbell that behaves. */
void endpoint_signal(struct endpoint *endpoint);

/* The first, short phase, for a caller who holds a lock that others want: at most `limit_ns`. Counts and tunes a success. */
enum wait_result endpoint_spin(struct endpoint *endpoint, enum wait_for what, uint32_t bytes, uint32_t limit_ns);

/* All the rest: spins on, yields, sleeps. deadline_ns: on clock_now_ns()'s clock. bytes: the packet that needs space. */
enum wait_result endpoint_wait(struct endpoint *endpoint, enum wait_for what, uint32_t bytes, uint64_t deadline_ns,
                               struct wait_progress *progress);

/* For event loops: unmask. WAIT_NOT_YET: nothing to read, sleep on wait_fd; WAIT_READY: masked again, there is data. */
enum wait_result endpoint_arm(struct endpoint *endpoint);

/* How long the next wait for `what` may spin while its caller holds a lock. */
uint32_t endpoint_spin_limit_ns(const struct endpoint *endpoint, enum wait_for what);

/* Say what is about to be published. ORDER journal: the next store to `in` is a release, so whoever finds the ring's new
 * index finds this word too; and where it finds this word and the old index, the answers were never seen by anyone. */
static inline void endpoint_commit(struct endpoint *endpoint)
{
    if (endpoint->journal)
        atomic_store_explicit(&endpoint->journal->commit,
                              (uint64_t)endpoint->reader.next_out << 32 | endpoint->writer.staged_in,
                              memory_order_relaxed);
}

/* After journal, seam or trace were set or taken away: an end that has none of them pays for one look at one flag. */
static inline void endpoint_observe(struct endpoint *endpoint)
{
    endpoint->is_observed = endpoint->journal || endpoint->seam || endpoint->trace;
}

/* After attaching both rings: release what the predecessor answered and published, and did not live to release. */
static inline void endpoint_take_over(struct endpoint *endpoint, struct endpoint_journal *journal)
{
    const uint64_t word = atomic_load_explicit(&journal->commit, memory_order_acquire);
    const uint32_t answered = (uint32_t)(word >> 32), published = (uint32_t)word;
    endpoint->journal = journal;
    endpoint_observe(endpoint);
    if (published != endpoint->writer.published_in || !ring_index_is_valid(answered, endpoint->reader.size_bytes))
        return;
    endpoint->reader.next_out = answered;
    endpoint->reader.cached_in = answered; /* nothing is known of the writer: behind this may be packets of the last lap */
    (void)ring_release(&endpoint->reader); /* whoever waits for it is kicked by the successor anyway */
}

/* A hop of one request. */
static inline void endpoint_stamp(struct endpoint *endpoint, enum trace_hop hop, uint64_t transaction_id)
{
    trace_stamp(endpoint->trace, endpoint->trace_channel, hop, transaction_id);
}

/* The same, where it is about to be written: what is published and signalled next is for it. */
static inline void endpoint_stamp_write(struct endpoint *endpoint, enum trace_hop hop, uint64_t transaction_id)
{
    if (TRACE_COMPILED && __builtin_expect(endpoint->trace != NULL, 0)) {
        endpoint->traced_id = transaction_id;
        endpoint_stamp(endpoint, hop, transaction_id);
    }
}

/* The steps of an end that is observed: what comes before its store to the ring, and behind it. */
static inline void endpoint_before_publish(struct endpoint *endpoint)
{
    endpoint_commit(endpoint);
    seam_pass(endpoint->seam, SEAM_COMMIT);
    endpoint_stamp(endpoint, TRACE_PUBLISH, endpoint->traced_id);
}

static inline void endpoint_after(struct endpoint *endpoint, enum seam_step step)
{
    seam_pass(endpoint->seam, step);
}

#define OBSERVED(endpoint) __builtin_expect((endpoint)->is_observed, 0)

/* Publish what is staged; true: endpoint_signal() is owed. It is a system call on something that the peer holds too, so the
 * caller lets go of its locks first. */
static inline bool endpoint_publish(struct endpoint *endpoint)
{
    if (OBSERVED(endpoint))
        endpoint_before_publish(endpoint);
    const bool owed = ring_publish(&endpoint->writer);
    if (OBSERVED(endpoint))
        endpoint_after(endpoint, SEAM_PUBLISH);
    endpoint->statistics.signals_suppressed += !owed;
    return owed;
}

/* Give back what was read; true: a signal is owed. ORDER journal: what needed no answer was published by nobody, so it is
 * committed here: a successor that attaches must not put the index back to the last request that was answered. */
static inline bool endpoint_release(struct endpoint *endpoint)
{
    if (endpoint->reader.released_out == endpoint->reader.next_out)
        return false;
    if (OBSERVED(endpoint) && endpoint->writer.staged_in == endpoint->writer.published_in)
        endpoint_commit(endpoint);
    const bool owed = ring_release(&endpoint->reader);
    if (OBSERVED(endpoint))
        endpoint_after(endpoint, SEAM_RELEASE);
    return owed;
}

/* Publish, then release, with one fence for both: a reply leaves before its request is given back, and a server that
 * answers one request at a time pays for one barrier a request. One doorbell serves both rules; true: it is owed. */
static inline bool endpoint_publish_and_release(struct endpoint *endpoint)
{
    if (OBSERVED(endpoint))
        endpoint_before_publish(endpoint);
    const uint32_t previous_in = ring_publish_index(&endpoint->writer);
    if (OBSERVED(endpoint))
        endpoint_after(endpoint, SEAM_PUBLISH);
    const uint32_t previous_out = ring_release_index(&endpoint->reader);
    if (OBSERVED(endpoint))
        endpoint_after(endpoint, SEAM_RELEASE);
    RING_FULL_FENCE(); /* ORDER sleep and ORDER space, in ring.h */
    const bool for_data = previous_in != endpoint->writer.published_in
                          && ring_publish_signals(&endpoint->writer, previous_in);
    const bool for_space = previous_out != endpoint->reader.released_out
                           && ring_release_signals(&endpoint->reader, previous_out);
    const bool owed = for_data || for_space;
    endpoint->statistics.signals_suppressed += !owed;
    return owed;
}

#endif
