/* The type FastIntercepts: the broker's wait for events, in which VPs that were lent make port accesses and are answered. */
#include "fast_intercept.h"
#include "module.h"

#include <errno.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>

#include "clock.h"
#include "synic.h"

#define EVENTS_MAX 64
#define NAP_NS 20000
#define ROUNDS_BETWEEN_SIGNALS 64 /* a guest that accesses ports all the time keeps nobody from Python's signal handlers */

struct lent {
    struct fast_vp vp;
    uint64_t parent;
    int child_fd, parent_fd, line_fd;
    uint64_t accesses, told, answers;
    uint32_t naps; /* one after the other */
    uint64_t served_ns, allowance_ns; /* for its accesses and their answers; when it is used up, no access is taken */
    Py_buffer page; /* the parent's SIM page, held */
};

/* What the flight recorder is told of a call: runtime/hypervisor/recorder.py, _RECORD. */
struct record {
    uint64_t number, when_ns, partition, effects;
    uint32_t code, took_ns;
    uint16_t status, kind;
    uint32_t reserved;
};
_Static_assert(sizeof(struct record) == 48, "recorder.py says the same");

struct totals {
    uint64_t access_ns, answer_ns; /* deciding, as the state machine counts it */
    uint64_t waits;                /* for the kernel */
    uint64_t looks;                /* at calls, before they are taken: a system call each */
};

struct fast_intercepts_object {
    PyObject_HEAD
    struct doorbell_ringer ringer;
    bool ringer_opened;
    uint64_t access_code, result_code, pending, raised, completed; /* codes; a status; bits of effects */
    uint32_t kept, kind;
    Py_buffer recorder; /* from its first record on */
    uint64_t recorded;
    uint32_t count;
    struct lent lent[FAST_LENT_MAX];
    uint64_t deaf[2]; /* partitions that do not read their replies */
    uint32_t deaf_count;
    struct totals totals;
};

static PyObject *fast_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"records", "kept", "kind", "access_code", "result_code", "pending", "raised", "completed", NULL};
    PyObject *records;
    unsigned kept, kind;
    unsigned long long codes[5];
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OIIKKKKK:FastIntercepts", names, &records, &kept, &kind, &codes[0], &codes[1],
                                     &codes[2], &codes[3], &codes[4]))
        return NULL;
    struct fast_intercepts_object *self = new_instance(type);
    if (!self)
        return NULL;
    if (kept == 0 || writable_page_open(&self->recorder, records, (Py_ssize_t)kept * (Py_ssize_t)sizeof(struct record), "records") < 0) {
        self->recorder.obj = NULL;
        Py_DECREF((PyObject *)self);
        return kept ? NULL : PyErr_Format(PyExc_ValueError, "kept: at least 1 expected");
    }
    self->kept = kept, self->kind = kind;
    self->access_code = codes[0], self->result_code = codes[1];
    self->pending = codes[2], self->raised = codes[3], self->completed = codes[4];
    return (PyObject *)self;
}

static void forget(struct fast_intercepts_object *self)
{
    for (uint32_t i = 0; i < self->count; i++)
        PyBuffer_Release(&self->lent[i].page);
    self->count = 0;
    self->deaf_count = 0;
    self->totals = (struct totals){0};
}

static void fast_dealloc(struct fast_intercepts_object *self)
{
    forget(self);
    if (self->recorder.obj)
        PyBuffer_Release(&self->recorder);
    if (self->ringer_opened)
        doorbell_ringer_close(&self->ringer);
    free_instance((PyObject *)self);
}

static PyObject *fast_lend(struct fast_intercepts_object *self, PyObject *args)
{
    unsigned long long child, parent;
    unsigned vp, port = 0, size = 1;
    int child_fd, parent_fd, line_fd, write = 0;
    unsigned long long allowance_ns;
    PyObject *page, *registers, *ranges, *at;
    if (!PyArg_ParseTuple(args, "KKIiiiOSSO!K:lend", &child, &parent, &vp, &child_fd, &parent_fd, &line_fd, &page, &registers,
                          &ranges, &PyTuple_Type, &at, &allowance_ns))
        return NULL;
    const bool suspended = PyTuple_Size(at) != 0;
    if (suspended && !PyArg_ParseTuple(at, "IIp", &port, &size, &write))
        return NULL;
    const Py_ssize_t range_bytes = PyBytes_Size(ranges);
    if (self->count == FAST_LENT_MAX)
        Py_RETURN_FALSE;
    struct lent *lent = &self->lent[self->count];
    if (PyBytes_Size(registers) != (Py_ssize_t)sizeof lent->vp.registers || range_bytes % (Py_ssize_t)sizeof(struct fast_range) != 0
        || range_bytes > (Py_ssize_t)sizeof lent->vp.ranges || (size != 1 && size != 2 && size != 4) || port > 0xFFFF)
        return PyErr_Format(PyExc_ValueError, "registers, ranges or access of a wrong size");
    *lent = (struct lent){.parent = parent, .child_fd = child_fd, .parent_fd = parent_fd, .line_fd = line_fd,
                           .allowance_ns = allowance_ns};
    if (writable_page_open(&lent->page, page, SYNIC_PAGE_BYTES, "sim_page") < 0)
        return NULL;
    lent->vp.child = child, lent->vp.vp = vp, lent->vp.sim_page = lent->page.buf;
    lent->vp.suspended = suspended;
    lent->vp.access = (struct fast_access){(uint16_t)port, (uint8_t)size, write != 0};
    memcpy(lent->vp.registers, PyBytes_AsString(registers), sizeof lent->vp.registers);
    memcpy(lent->vp.ranges, PyBytes_AsString(ranges), (size_t)range_bytes);
    lent->vp.range_count = (uint32_t)(range_bytes / (Py_ssize_t)sizeof(struct fast_range));
    self->count++;
    Py_RETURN_TRUE;
}

static void record(struct fast_intercepts_object *self, uint64_t when_ns, uint64_t partition, uint64_t code, uint64_t took_ns,
                   uint64_t status, uint64_t effects)
{
    const uint64_t number = ++self->recorded;
    const struct record one = {number, when_ns, partition, effects, (uint32_t)code,
                               took_ns > UINT32_MAX ? UINT32_MAX : (uint32_t)took_ns, (uint16_t)status, (uint16_t)self->kind, 0};
    memcpy((uint8_t *)self->recorder.buf + number % self->kept * sizeof one, &one, sizeof one);
}

/* A reply. A partition that asks and does not read is for Python to deal with; one that is gone says so by itself. */
static void reply(struct fast_intercepts_object *self, int fd, uint64_t partition, const uint8_t *packet, size_t bytes)
{
    ssize_t sent;
    do
        sent = send(fd, packet, bytes, MSG_DONTWAIT | MSG_NOSIGNAL);
    while (sent < 0 && errno == EINTR);
    if (sent < 0 && (errno == EAGAIN || errno == EWOULDBLOCK))
        self->deaf[self->deaf_count++] = partition;
}

static struct lent *lent_to(struct fast_intercepts_object *self, int fd, const struct fast_call *call, bool is_access)
{
    for (uint32_t i = 0; i < self->count; i++) {
        struct lent *lent = &self->lent[i];
        if (is_access ? lent->child_fd == fd : lent->parent_fd == fd && lent->vp.child == call->values[FAST_PARTITION])
            return lent;
    }
    return NULL;
}

enum served { LEFT, LATER, SERVED };

/* One call, if one is there that may be served here. LEFT: it is where it was, for Python; LATER: for us.
 *
 * Two partitions that access ports without pause meet at their parent's one slot at every turn. The parent empties it in
 * some microseconds, and telling Python of it would cost each of them ten times as much. */
static enum served serve(struct fast_intercepts_object *self, int fd, bool may_wait)
{
    uint8_t packet[FAST_PACKET_MAX_BYTES], out[FAST_REPLY_MAX_BYTES];
    struct iovec into = {packet, sizeof packet};
    struct msghdr header = {.msg_iov = &into, .msg_iovlen = 1};
    /* Looked at before it is taken: what comes with descriptors, or is longer, shows in the flags. */
    self->totals.looks++;
    const ssize_t bytes = recvmsg(fd, &header, MSG_PEEK | MSG_DONTWAIT);
    struct fast_call call;
    if (bytes <= 0 || header.msg_flags & (MSG_TRUNC | MSG_CTRUNC) || !fast_decode(&call, packet, (size_t)bytes))
        return LEFT;
    const uint64_t begun_ns = clock_now_ns();
    const bool is_access = call.code == self->access_code;
    if (!is_access && (call.code != self->result_code || !(call.given & 1u << FAST_PARTITION)))
        return LEFT;
    struct lent *lent = lent_to(self, fd, &call, is_access);
    if (!lent || (is_access && lent->served_ns >= lent->allowance_ns))
        return LEFT;
    if (may_wait && is_access && lent->naps < FAST_NAPS_MAX && !fast_may_tell(&lent->vp)) {
        lent->naps++;
        return LATER;
    }
    lent->naps = 0;
    uint64_t value = 0;
    const enum fast_result result = is_access ? fast_access_port(&lent->vp, &call, &value) : fast_register_result(&lent->vp, &call, &value);
    if (result == FAST_LEFT)
        return LEFT;
    const uint64_t took_ns = clock_now_ns() - begun_ns;
    if (result == FAST_TOLD)
        doorbell_ring(&self->ringer, lent->line_fd);
    else
        reply(self, lent->child_fd, lent->vp.child, out, fast_encode_access_reply(out, value));
    (void)!recv(fd, packet, sizeof packet, MSG_DONTWAIT); /* the one that was looked at: nobody else reads here */
    if (is_access) {
        lent->accesses++;
        lent->told += result == FAST_TOLD;
        self->totals.access_ns += took_ns;
        record(self, begun_ns, lent->vp.child, call.code, took_ns, result == FAST_TOLD ? self->pending : 0,
               result == FAST_TOLD ? self->raised : 0);
    } else {
        reply(self, fd, lent->parent, out, fast_encode_done(out));
        lent->answers++;
        self->totals.answer_ns += took_ns;
        record(self, begun_ns, lent->parent, call.code, took_ns, 0, self->completed);
    }
    lent->served_ns += clock_now_ns() - begun_ns;
    return SERVED;
}

/* Until there is something for Python, or the time is over. How many events; -1: errno. */
static int wait_and_serve(struct fast_intercepts_object *self, int epoll_fd, int timeout_ms, struct epoll_event events[EVENTS_MAX])
{
    const struct timespec nap = {.tv_nsec = NAP_NS};
    for (int round = 0; round < ROUNDS_BETWEEN_SIGNALS; round++) {
        self->totals.waits++;
        const int ready = epoll_wait(epoll_fd, events, EVENTS_MAX, timeout_ms);
        if (ready <= 0)
            return ready;
        int left = 0;
        bool is_later = false;
        for (int i = 0; i < ready; i++) {
            const bool may_be = events[i].events == EPOLLIN && !self->deaf_count;
            const enum served served = may_be ? serve(self, events[i].data.fd, timeout_ms < 0) : LEFT;
            if (served == LEFT)
                events[left++] = events[i];
            is_later |= served == LATER;
        }
        if (left || self->deaf_count || timeout_ms >= 0)
            return left;
        if (is_later)
            clock_nanosleep(CLOCK_MONOTONIC, 0, &nap, NULL);
    }
    errno = EINTR;
    return -1;
}

static PyObject *fast_wait(struct fast_intercepts_object *self, PyObject *args)
{
    int epoll_fd, timeout_ms;
    unsigned long long recorded;
    struct epoll_event events[EVENTS_MAX];
    if (!PyArg_ParseTuple(args, "iiK:wait", &epoll_fd, &timeout_ms, &recorded))
        return NULL;
    if (!self->ringer_opened) {
        self->ringer_opened = true;
        doorbell_ringer_open(&self->ringer);
    }
    self->recorded = recorded;
    int ready;
    do {
        PyThreadState *thread = PyEval_SaveThread();
        ready = wait_and_serve(self, epoll_fd, timeout_ms, events);
        const int error = errno;
        PyEval_RestoreThread(thread);
        if (ready < 0 && error != EINTR) {
            errno = error;
            return PyErr_SetFromErrno(PyExc_OSError);
        }
        if (ready < 0 && PyErr_CheckSignals() < 0)
            return NULL;
    } while (ready < 0 && timeout_ms < 0);
    PyObject *list = PyList_New(0);
    for (int i = 0; list && i < ready; i++) {
        PyObject *event = Py_BuildValue("(iI)", (int)events[i].data.fd, (unsigned)events[i].events);
        if (!event || PyList_Append(list, event) < 0)
            Py_CLEAR(list);
        Py_XDECREF(event);
    }
    return list;
}

static PyObject *row_of(const struct lent *lent)
{
    const struct fast_access *access = &lent->vp.access;
    PyObject *at = lent->vp.suspended ? Py_BuildValue("(IIO)", (unsigned)access->port, (unsigned)access->size,
                                                      access->write ? Py_True : Py_False)
                                      : Py_BuildValue("");
    if (!at)
        return NULL;
    return Py_BuildValue("(KKIy#NKKKK)", (unsigned long long)lent->vp.child, (unsigned long long)lent->parent,
                         (unsigned)lent->vp.vp, (const char *)lent->vp.registers, (Py_ssize_t)sizeof lent->vp.registers, at,
                         (unsigned long long)lent->accesses, (unsigned long long)lent->told, (unsigned long long)lent->answers,
                         (unsigned long long)lent->served_ns);
}

static PyObject *fast_take_back(struct fast_intercepts_object *self, PyObject *unused)
{
    PyObject *rows = PyList_New(0), *deaf = PyList_New(0);
    for (uint32_t i = 0; rows && i < self->count; i++) {
        PyObject *row = row_of(&self->lent[i]);
        if (!row || PyList_Append(rows, row) < 0)
            Py_CLEAR(rows);
        Py_XDECREF(row);
    }
    for (uint32_t i = 0; deaf && i < self->deaf_count; i++) {
        PyObject *partition = PyLong_FromUnsignedLongLong(self->deaf[i]);
        if (!partition || PyList_Append(deaf, partition) < 0)
            Py_CLEAR(deaf);
        Py_XDECREF(partition);
    }
    PyObject *result = NULL;
    if (rows && deaf)
        result = Py_BuildValue("(OO(KKKKK))", rows, deaf, (unsigned long long)self->recorded,
                               (unsigned long long)self->totals.access_ns, (unsigned long long)self->totals.answer_ns,
                               (unsigned long long)self->totals.waits, (unsigned long long)self->totals.looks);
    Py_XDECREF(rows);
    Py_XDECREF(deaf);
    if (result)
        forget(self);
    return result;
}

static PyMethodDef fast_methods[] = {
    {"lend", (PyCFunction)fast_lend, METH_VARARGS, NULL},
    {"wait", (PyCFunction)fast_wait, METH_VARARGS, NULL},
    {"take_back", (PyCFunction)fast_take_back, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot fast_slots[] = {
    {Py_tp_doc, "Waits for events; port accesses of lent VPs are told and answered meanwhile."},
    {Py_tp_new, fast_new},
    {Py_tp_dealloc, fast_dealloc},
    {Py_tp_methods, fast_methods},
    {0, NULL},
};

PyType_Spec fast_intercepts_spec = {
    .name = "bus.native.FastIntercepts",
    .basicsize = sizeof(struct fast_intercepts_object),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = fast_slots,
};
