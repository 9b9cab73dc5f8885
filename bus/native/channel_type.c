/* The type Channel: making one, its methods and properties. Sending is in channel_send.c, receiving in channel_receive.c and,
 * with the payload left in place, in channel_views.c. */
#include "channel.h"

#include <errno.h>
#include <limits.h>
#include <unistd.h>

#include "service_budget_type.h"
#include "synic.h"
#include "trace_type.h"
#include "waiting.h"

/* One ring inside the channel's memory. -1 with ValueError set. */
static int check_ring(const Py_buffer *memory, Py_ssize_t offset, Py_ssize_t bytes, const char *name)
{
    if (bytes < RING_PAGE_BYTES || bytes % RING_PAGE_BYTES != 0 || bytes > RING_MAX_DATA_BYTES) {
        PyErr_Format(PyExc_ValueError, "%s_bytes: %zd is not a number of whole pages up to 1 GiB", name, bytes);
        return -1;
    }
    if (offset < 0 || offset % 64 != 0 || offset > memory->len - RING_PAGE_BYTES
        || bytes > memory->len - RING_PAGE_BYTES - offset) {
        PyErr_Format(PyExc_ValueError, "%s_offset: a ring of %zd bytes at %zd is not inside the memory's %zd bytes", name,
                     bytes, offset, memory->len);
        return -1;
    }
    return 0;
}

struct channel_arguments {
    PyObject *memory, *waiting, *flags, *journal, *seam, *trace;
    unsigned long long trace_channel;
    Py_ssize_t outgoing_offset, outgoing_bytes, incoming_offset, incoming_bytes;
    int signal_fd, wait_fd, flag, reset;
};

static int attach(struct channel *channel, const struct channel_arguments *given)
{
    const Py_ssize_t out_at = given->outgoing_offset, in_at = given->incoming_offset;
    if (writable_page_open(&channel->memory, given->memory, 2 * RING_PAGE_BYTES, "memory") < 0)
        return -1;
    if (check_ring(&channel->memory, out_at, given->outgoing_bytes, "outgoing") < 0
        || check_ring(&channel->memory, in_at, given->incoming_bytes, "incoming") < 0)
        return -1;
    if (out_at < in_at ? out_at + RING_PAGE_BYTES + given->outgoing_bytes > in_at
                       : in_at + RING_PAGE_BYTES + given->incoming_bytes > out_at) {
        PyErr_SetString(PyExc_ValueError, "the two rings overlap");
        return -1;
    }
    if (given->flags != Py_None) {
        if (given->flag < 0 || given->flag >= (int)SYNIC_FLAGS) {
            PyErr_Format(PyExc_ValueError, "flag: %d is not a bit of a SIEF page", given->flag);
            return -1;
        }
        if (writable_page_open(&channel->flags, given->flags, SYNIC_PAGE_BYTES, "flags") < 0)
            return -1;
        atomic_store(&channel->endpoint.flag_page, channel->flags.buf);
        channel->endpoint.flag = (uint32_t)given->flag;
    }
    PyObject *view = PyMemoryView_FromObject(given->memory);
    PyObject *flat = view ? PyObject_CallMethod(view, "cast", "s", "B") : NULL;
    channel->memory_view = flat ? PyObject_CallMethod(flat, "toreadonly", NULL) : NULL;
    Py_XDECREF(view);
    Py_XDECREF(flat);
    if (!channel->memory_view)
        return -1;
    uint8_t *outgoing = (uint8_t *)channel->memory.buf + out_at, *incoming = (uint8_t *)channel->memory.buf + in_at;
    if (given->reset) {
        memset(outgoing, 0, RING_PAGE_BYTES);
        memset(incoming, 0, RING_PAGE_BYTES);
        ((struct ring_header *)incoming)->feature_bits = RING_FEATURE_PENDING_SEND; /* until the peer says it itself */
    }
    channel->reader_data_offset = in_at + RING_PAGE_BYTES;
    if (ring_writer_attach(&channel->endpoint.writer, outgoing, (uint32_t)given->outgoing_bytes) != RING_OK
        || ring_reader_attach(&channel->endpoint.reader, incoming, (uint32_t)given->incoming_bytes) != RING_OK) {
        PyErr_SetString(channel->state->ring_corrupt, "an index in a ring's header is impossible");
        return -1;
    }
    if (given->journal != Py_None) {
        if (writable_page_open(&channel->journal, given->journal, sizeof(struct endpoint_journal), "journal") < 0)
            return -1;
        endpoint_take_over(&channel->endpoint, channel->journal.buf);
    }
    if (given->seam != Py_None) {
        if (writable_page_open(&channel->seam, given->seam, sizeof(struct seam), "seam") < 0)
            return -1;
        channel->endpoint.seam = channel->seam.buf;
    }
    if (given->trace != Py_None) {
        channel->endpoint.trace = trace_of(channel->state, given->trace);
        if (!channel->endpoint.trace)
            return -1;
        Py_INCREF(given->trace);
        channel->trace = given->trace;
        channel->endpoint.trace_channel = given->trace_channel;
    }
    endpoint_observe(&channel->endpoint);
    return 0;
}

static PyObject *channel_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"memory", "outgoing_offset", "outgoing_bytes", "incoming_offset", "incoming_bytes",
                            "signal_fd", "wait_fd", "waiting", "flags", "flag", "reset", "journal", "seam",
                            "trace", "trace_channel", NULL};
    const Py_ssize_t missing = PY_SSIZE_T_MIN; /* the format cannot say that a named argument is required */
    struct channel_arguments given = {
        .waiting = Py_None, .flags = Py_None, .journal = Py_None, .seam = Py_None, .trace = Py_None, .flag = -1, .signal_fd = INT_MIN, .wait_fd = INT_MIN,
        .outgoing_offset = missing, .outgoing_bytes = missing, .incoming_offset = missing, .incoming_bytes = missing};
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O|$nnnniiOOipOOOK:Channel", names, &given.memory, &given.outgoing_offset,
                                     &given.outgoing_bytes, &given.incoming_offset, &given.incoming_bytes,
                                     &given.signal_fd, &given.wait_fd, &given.waiting, &given.flags, &given.flag,
                                     &given.reset, &given.journal, &given.seam, &given.trace, &given.trace_channel))
        return NULL;
    if (given.outgoing_offset == missing || given.outgoing_bytes == missing || given.incoming_offset == missing
        || given.incoming_bytes == missing || given.signal_fd == INT_MIN || given.wait_fd == INT_MIN)
        return PyErr_Format(PyExc_TypeError, "Channel() needs the place of both rings, signal_fd and wait_fd by name");
    struct wait_policy policy;
    if (waiting_policy_of(state_of(type), given.waiting, &policy) < 0)
        return NULL;
    struct channel *channel = new_instance(type);
    if (!channel)
        return NULL;
    channel->state = state_of(type);
    if (attach(channel, &given) < 0) {
        Py_DECREF((PyObject *)channel);
        return NULL;
    }
    const int error = endpoint_open(&channel->endpoint, given.signal_fd, given.wait_fd, &policy);
    if (error) {
        errno = error;
        PyErr_SetFromErrno(PyExc_OSError);
        Py_DECREF((PyObject *)channel);
        return NULL;
    }
    channel->opened = true;
    return (PyObject *)channel;
}

static void channel_dealloc(struct channel *channel)
{
    if (channel->opened)
        endpoint_destroy(&channel->endpoint);
    channel_last_leaves(channel);
    free_instance((PyObject *)channel);
}

static PyObject *channel_wait_readable(struct channel *channel, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames)
{
    static const char *const names[] = {"timeout_ns"};
    PyObject *values[1];
    int64_t timeout_ns;
    if (parse_arguments("wait_readable", names, 1, 0, args, nargs, kwnames, values) < 0
        || to_i64(values[0], -1, &timeout_ns) < 0 || channel_enter(channel, WAIT_FOR_DATA) < 0)
        return NULL;
    struct ring_reader *reader = &channel->endpoint.reader;
    const int ready = reader->cached_in != reader->next_out ? 1 : channel_wait(channel, WAIT_FOR_DATA, 0, timeout_ns);
    return channel_leave(channel, ready < 0 ? NULL : PyBool_FromLong(ready));
}

static PyObject *channel_wait_writable(struct channel *channel, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames)
{
    static const char *const names[] = {"packet_bytes", "timeout_ns"};
    PyObject *values[2];
    uint32_t bytes;
    int64_t timeout_ns;
    if (parse_arguments("wait_writable", names, 2, 1, args, nargs, kwnames, values) < 0
        || to_u32(values[0], 0, &bytes) < 0 || to_i64(values[1], -1, &timeout_ns) < 0
        || channel_check(channel, WAIT_FOR_SPACE) < 0)
        return NULL;
    struct ring_writer *writer = &channel->endpoint.writer;
    if (bytes > ring_largest_packet_bytes(writer->size_bytes))
        return PyErr_Format(PyExc_ValueError, "packet_bytes: this ring's largest packet takes %u bytes",
                            (unsigned)ring_largest_packet_bytes(writer->size_bytes));
    bytes = ring_align8(bytes);
    if (bytes <= ring_writable_cached(writer))
        Py_RETURN_TRUE;
    channel->inside++;
    const int ready = channel_wait(channel, WAIT_FOR_SPACE, bytes, timeout_ns);
    ring_want_no_space(writer);
    return channel_leave(channel, ready < 0 ? NULL : PyBool_FromLong(ready));
}

static PyObject *channel_release_method(struct channel *channel, PyObject *unused)
{
    if (channel_enter(channel, WAIT_FOR_DATA) < 0)
        return NULL;
    channel_release(channel);
    Py_INCREF(Py_None);
    return channel_leave(channel, Py_None);
}

static PyObject *channel_arm(struct channel *channel, PyObject *unused)
{
    if (channel_check(channel, WAIT_FOR_DATA) < 0)
        return NULL;
    const enum wait_result result = endpoint_arm(&channel->endpoint);
    return result == WAIT_CORRUPT ? channel_is_corrupt(channel) : PyBool_FromLong(result == WAIT_NOT_YET);
}

static PyObject *channel_fileno(struct channel *channel, PyObject *unused)
{
    const int fd = channel->endpoint.wait_epoll_fd;
    if (fd < 0) {
        PyErr_SetString(PyExc_ValueError, "this end has no doorbell to wait for");
        return NULL;
    }
    return PyLong_FromLong(fd);
}

static PyObject *channel_disarm(struct channel *channel, PyObject *unused)
{
    if (channel_check(channel, WAIT_FOR_DATA) < 0)
        return NULL;
    ring_mask(&channel->endpoint.reader);
    Py_RETURN_NONE;
}

static PyObject *channel_kick(struct channel *channel, PyObject *unused)
{
    if (channel->closed) {
        channel_refuse(channel, WAIT_FOR_SPACE);
        return NULL;
    }
    channel->inside++;
    channel_signal(channel);
    Py_INCREF(Py_None);
    return channel_leave(channel, Py_None);
}

/* Of no use to anyone but a reader of traces: a closed channel does not mind. */
static PyObject *channel_stamp(struct channel *channel, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames)
{
    static const char *const names[] = {"hop", "transaction_id"};
    PyObject *values[2];
    uint32_t hop;
    uint64_t transaction_id;
    if (parse_arguments("stamp", names, 2, 1, args, nargs, kwnames, values) < 0 || to_u32(values[0], 0, &hop) < 0
        || to_u64(values[1], 0, &transaction_id) < 0)
        return NULL;
    if (hop == 0 || hop >= TRACE_HOPS)
        return PyErr_Format(PyExc_ValueError, "hop: %u is none", (unsigned)hop);
    endpoint_stamp(&channel->endpoint, (enum trace_hop)hop, transaction_id);
    Py_RETURN_NONE;
}

static PyObject *channel_aim(struct channel *channel, PyObject *flags)
{
    Py_buffer page;
    if (channel->closed || channel->corrupt) {
        channel_refuse(channel, WAIT_FOR_SPACE);
        return NULL;
    }
    if (!channel->flags.obj) {
        PyErr_SetString(PyExc_ValueError, "this channel's interrupts set no flag");
        return NULL;
    }
    if (writable_page_open(&page, flags, SYNIC_PAGE_BYTES, "flags") < 0)
        return NULL;
    void *const memory = page.buf;
    /* The pages before stay too, until nobody can be inside: a thread may be looking at one. */
    PyObject *view = PyMemoryView_FromObject(flags);
    PyBuffer_Release(&page);
    if (view && !channel->aimed_pages)
        channel->aimed_pages = PyList_New(0);
    const int kept = view && channel->aimed_pages ? PyList_Append(channel->aimed_pages, view) : -1;
    Py_XDECREF(view);
    if (kept < 0)
        return NULL;
    endpoint_aim(&channel->endpoint, memory);
    Py_RETURN_NONE;
}

static PyObject *channel_close(struct channel *channel, PyObject *unused)
{
    if (channel->closed)
        Py_RETURN_NONE;
    channel->closed = true;
    channel->inside++;
    PyThreadState *thread = PyEval_SaveThread();
    endpoint_close(&channel->endpoint);
    PyEval_RestoreThread(thread);
    Py_INCREF(Py_None);
    return channel_leave(channel, Py_None);
}

static PyObject *channel_statistics(struct channel *channel, PyObject *unused)
{
    static const char *const names[] = {
        "packets_sent", "packets_received", "bytes_sent", "bytes_received", "signals_sent", "signals_suppressed",
        "waits_spun", "waits_yielded", "waits_blocked", "ring_full", "unknown_ids", "spin_ns", NULL};
    const struct endpoint_statistics *counted = &channel->endpoint.statistics;
    const uint64_t values[] = {
        counted->packets_sent, counted->packets_received, counted->bytes_sent, counted->bytes_received,
        counted->signals_sent, counted->signals_suppressed, counted->waits_spun, counted->waits_yielded,
        counted->waits_blocked, counted->ring_full, counted->unknown_ids, channel->endpoint.data_tuning.spin_ns};
    return dict_of_u64s(names, values);
}

static PyObject *channel_held(struct channel *channel, void *unused)
{
    return PyLong_FromUnsignedLong(channel->held);
}

#define FAST (METH_FASTCALL | METH_KEYWORDS)
#define METHOD(name, function, how) {name, (PyCFunction)(void (*)(void))(function), how, NULL}

static PyObject *channel_packets_received(struct channel *channel, void *unused)
{
    return PyLong_FromUnsignedLongLong(channel->endpoint.statistics.packets_received);
}

/* For a watchdog on another thread: what the two indices say at this moment. */
static PyObject *channel_has_work(struct channel *channel, void *unused)
{
    if (channel->closed)
        Py_RETURN_FALSE;
    const struct ring_reader *reader = &channel->endpoint.reader;
    return PyBool_FromLong(atomic_load_explicit(&reader->header->in, memory_order_relaxed) != reader->released_out);
}

/* For a watchdog, too: it serves nobody just now, and that is as it should be. */
static PyObject *channel_is_resting(struct channel *channel, void *unused)
{
    return PyBool_FromLong(atomic_load(&channel->endpoint.rests) != 0);
}

static PyObject *channel_is_traced(struct channel *channel, void *unused)
{
    return PyBool_FromLong(channel->endpoint.trace != NULL);
}

static PyObject *channel_exact_lengths(struct channel *channel, PyObject *unused)
{
    channel->exact = true;
    Py_RETURN_NONE;
}

static PyMethodDef channel_methods[] = {
    METHOD("send", channel_send, FAST),
    METHOD("send_completion", channel_send_completion, FAST),
    METHOD("answer", channel_answer, FAST),
    METHOD("send_gpa_direct", channel_send_gpa_direct, FAST),
    METHOD("send_transfer_pages", channel_send_transfer_pages, FAST),
    METHOD("send_raw", channel_send_raw, FAST),
    METHOD("send_many", channel_send_many, FAST),
    METHOD("receive", channel_receive, FAST),
    METHOD("receive_batch", channel_receive_batch, FAST),
    METHOD("receive_payloads", channel_receive_payloads, FAST),
    METHOD("receive_into", channel_receive_into, FAST),
    METHOD("peek_views", channel_peek_views, METH_NOARGS),
    METHOD("release", channel_release_method, METH_NOARGS),
    METHOD("exchange", channel_exchange, FAST),
    METHOD("reply_and_receive", channel_reply_and_receive, FAST),
    METHOD("wait_readable", channel_wait_readable, FAST),
    METHOD("wait_writable", channel_wait_writable, FAST),
    METHOD("arm", channel_arm, METH_NOARGS),
    METHOD("fileno", channel_fileno, METH_NOARGS),
    METHOD("disarm", channel_disarm, METH_NOARGS),
    METHOD("aim", channel_aim, METH_O),
    METHOD("kick", channel_kick, METH_NOARGS),
    METHOD("charge_to", channel_charge_to, METH_O),
    METHOD("exact_lengths", channel_exact_lengths, METH_NOARGS),
    METHOD("stamp", channel_stamp, FAST),
    METHOD("close", channel_close, METH_NOARGS),
    METHOD("statistics", channel_statistics, METH_NOARGS),
    {NULL, NULL, 0, NULL},
};

static PyObject *channel_is_closed(struct channel *channel, void *unused)
{
    return PyBool_FromLong(channel->closed);
}

static PyGetSetDef channel_properties[] = {
    {"is_closed", (getter)channel_is_closed, NULL, "Whether close() was called here.", NULL},
    {"is_resting", (getter)channel_is_resting, NULL, "Whether its server pays a debt off: see ServiceBudget.", NULL},
    {"is_traced", (getter)channel_is_traced, NULL, "Whether stamp() does anything.", NULL},
    {"held", (getter)channel_held, NULL, "Packets peeked and not released.", NULL},
    {"packets_received", (getter)channel_packets_received, NULL, "As in statistics().", NULL},
    {"has_work", (getter)channel_has_work, NULL, "Whether the incoming ring holds what was not released.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot channel_slots[] = {
    {Py_tp_doc, "One end of a VMBus channel: an outgoing and an incoming ring, the peer's doorbell, our own."},
    {Py_tp_new, channel_new},
    {Py_tp_dealloc, channel_dealloc},
    {Py_tp_methods, channel_methods},
    {Py_tp_getset, channel_properties},
    {0, NULL},
};

PyType_Spec channel_spec = {
    .name = "bus.native.Channel",
    .basicsize = sizeof(struct channel),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = channel_slots,
};
