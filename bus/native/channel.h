/* The Python object around an endpoint; shared by the files that make up the type Channel. */
#ifndef PARTVISOR_CHANNEL_H
#define PARTVISOR_CHANNEL_H

#include "endpoint.h"
#include "module.h"

#define CHANNEL_ANSWERS_MAX 256 /* packets held at once whose ends are known: what answer() can give back one by one */

/* With exact lengths, the highest byte of a packet's transaction id on the wire says how many bytes of its payload are
 * padding, and of a completion, above that, what its payload is, in its protocol's own words; 0: the plain answer. Here that
 * mark stands in the packet's flags, where the wire has no bits of that number. */
#define CHANNEL_PADDING_MASK 7u
#define CHANNEL_PADDING_BITS 3
#define CHANNEL_SAID_SHIFT 56 /* in the id */
#define CHANNEL_ID_MASK ((1ull << CHANNEL_SAID_SHIFT) - 1)
#define CHANNEL_MARK_SHIFT 11 /* in flags */
#define CHANNEL_MARK_MAX 31u

struct channel {
    PyObject_HEAD
    struct endpoint endpoint;
    struct module_state *state;
    Py_buffer memory, flags, journal, seam; /* obj is NULL when not held */
    PyObject *trace;         /* or NULL: nobody traces */
    PyObject *budget;        /* or NULL: nobody counts */
    PyObject *aimed_pages;   /* list: the pages that aim() named; NULL before */
    PyObject *memory_view;   /* read-only, format B, of all of `memory` */
    Py_ssize_t reader_data_offset;
    uint32_t held;      /* packets peeked and not released */
    uint8_t oldest;     /* of them, in `ends` */
    uint32_t ends[CHANNEL_ANSWERS_MAX]; /* where each ends; of more than so many at once, they are not all known */
    uint32_t inside;    /* calls under way that may run other Python code, or wait: close() leaves the memory to them */
    bool opened, closed, corrupt;
    bool exact; /* packets say how much of their payload is padding */
    bool owes_signal;   /* the peer must be woken; left to the wait or release that follows at once */
    bool waits[2];      /* by enum wait_for: a thread is in that wait */
};

/* -1 with RingClosed, RingCorrupt or RuntimeError (two threads on one side) set; in front of every operation. */
int channel_refuse(struct channel *channel, enum wait_for side);

static inline int channel_check(struct channel *channel, enum wait_for side)
{
    if (__builtin_expect(channel->closed || channel->corrupt || channel->waits[side], 0))
        return channel_refuse(channel, side);
    return 0;
}

/* Around whatever may run other Python code (any new container can: the garbage collector calls finalizers) or wait. */
static inline int channel_enter(struct channel *channel, enum wait_for side)
{
    if (channel_check(channel, side) < 0)
        return -1;
    channel->inside++;
    return 0;
}

void channel_last_leaves(struct channel *channel);

static inline PyObject *channel_leave(struct channel *channel, PyObject *result)
{
    if (--channel->inside == 0 && channel->closed)
        channel_last_leaves(channel);
    return result;
}

/* Mark the channel finished; NULL with RingCorrupt set. */
PyObject *channel_is_corrupt(struct channel *channel);

/* Between enter and leave. 1: ready; 0: the timeout passed; -1: an exception is set. timeout_ns: -1 for ever, 0 just look. */
int channel_wait(struct channel *channel, enum wait_for what, uint32_t bytes, int64_t timeout_ns);

/* Between enter and leave. Ring the peer's doorbell without the GIL: a peer that makes it block stops this thread alone. */
void channel_signal(struct channel *channel);

/* Between enter and leave. */
static inline void channel_release(struct channel *channel)
{
    const bool owes_signal = endpoint_release(&channel->endpoint) || channel->owes_signal;
    channel->held = 0;
    channel->owes_signal = false;
    if (owes_signal)
        channel_signal(channel);
}

PyObject *channel_send(struct channel *, PyObject *const *, Py_ssize_t, PyObject *);
PyObject *channel_send_completion(struct channel *, PyObject *const *, Py_ssize_t, PyObject *);
PyObject *channel_answer(struct channel *, PyObject *const *, Py_ssize_t, PyObject *);
PyObject *channel_send_gpa_direct(struct channel *, PyObject *const *, Py_ssize_t, PyObject *);
PyObject *channel_send_transfer_pages(struct channel *, PyObject *const *, Py_ssize_t, PyObject *);
PyObject *channel_send_raw(struct channel *, PyObject *const *, Py_ssize_t, PyObject *);
PyObject *channel_send_many(struct channel *, PyObject *const *, Py_ssize_t, PyObject *);

/* Stage one packet. -1 with an exception set; nothing was staged. */
int channel_stage(struct channel *channel, uint16_t type, uint16_t flags, uint64_t transaction_id, const void *extra,
                  size_t extra_bytes, const void *payload, size_t payload_bytes);

PyObject *channel_receive(struct channel *, PyObject *const *, Py_ssize_t, PyObject *);
PyObject *channel_receive_batch(struct channel *, PyObject *const *, Py_ssize_t, PyObject *);
PyObject *channel_receive_payloads(struct channel *, PyObject *const *, Py_ssize_t, PyObject *);
PyObject *channel_receive_into(struct channel *, PyObject *const *, Py_ssize_t, PyObject *);
PyObject *channel_peek_views(struct channel *, PyObject *);
PyObject *channel_exchange(struct channel *, PyObject *const *, Py_ssize_t, PyObject *);
PyObject *channel_reply_and_receive(struct channel *, PyObject *const *, Py_ssize_t, PyObject *);

_Static_assert(CHANNEL_ANSWERS_MAX == UINT8_MAX + 1, "`oldest` wraps where `ends` does");

#endif
