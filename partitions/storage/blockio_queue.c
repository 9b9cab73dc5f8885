/* The type Queue: block_queue.h for Python. */
#include "blockio.h"

#include <time.h>

#include "block_queue.h"
#include "result_list.h"

#define SPACE_PAUSE_NS 20000

struct queue_object {
    PyObject_HEAD
    PyObject *channel;
    PyObject *failed;  /* list of (slot, packet) */
    PyObject *ended;   /* list of slots that ended well while transfer() waited for its own: for the next reap() */
    PyObject *foreign; /* list of (type, flags, transaction id, extra header, payload) */
    struct block_queue queue;
    uint64_t disk_blocks;
    bool broken; /* the peer broke the ring in this call */
};

static PyObject *queue_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"channel", "first_pfn", "slots", "slot_bytes", "block_bytes", "disk_blocks", "sequence", NULL};
    PyObject *channel;
    unsigned long long first_pfn, disk_blocks, sequence;
    unsigned int slots, slot_bytes, block_bytes;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OKIIIKK", names, &channel, &first_pfn, &slots, &slot_bytes,
                                     &block_bytes, &disk_blocks, &sequence))
        return NULL;
    if (slots == 0 || slots > BLOCK_QUEUE_MAX_SLOTS || slot_bytes == 0 || slot_bytes % RING_PAGE_BYTES
        || slot_bytes > STORVSP_MAX_TRANSFER_BYTES || block_bytes == 0) {
        PyErr_Format(PyExc_ValueError, "want 1 to %u slots of whole pages, at most %u bytes each", BLOCK_QUEUE_MAX_SLOTS,
                     STORVSP_MAX_TRANSFER_BYTES);
        return NULL;
    }
    allocfunc alloc = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
    struct queue_object *self = (struct queue_object *)alloc(type, 0);
    if (!self)
        return NULL;
    Py_INCREF(channel);
    self->channel = channel;
    self->failed = PyList_New(0);
    self->foreign = PyList_New(0);
    self->ended = PyList_New(0);
    self->queue.slot = PyMem_Calloc(slots, sizeof *self->queue.slot);
    if (!self->failed || !self->foreign || !self->ended || !self->queue.slot) {
        Py_DECREF(self);
        return PyErr_NoMemory();
    }
    self->queue.first_pfn = first_pfn;
    self->queue.slots = slots;
    self->queue.slot_bytes = slot_bytes;
    self->queue.block_bytes = block_bytes;
    self->queue.sequence = sequence;
    self->disk_blocks = disk_blocks;
    return (PyObject *)self;
}

static void queue_dealloc(PyObject *object)
{
    struct queue_object *self = (struct queue_object *)object;
    PyTypeObject *type = Py_TYPE(object);
    Py_XDECREF(self->channel);
    Py_XDECREF(self->failed);
    Py_XDECREF(self->foreign);
    Py_XDECREF(self->ended);
    PyMem_Free(self->queue.slot);
    freefunc free_object = (freefunc)PyType_GetSlot(type, Py_tp_free);
    free_object(object);
    Py_DECREF(type);
}

/* Every call is between these two: we are the channel's sender and receiver meanwhile. */
static bool begin(struct queue_object *self)
{
    self->queue.endpoint = state_of(Py_TYPE((PyObject *)self))->core->channel_enter(self->channel);
    return self->queue.endpoint != NULL;
}

/* Takes `result` over: it is returned unless the channel was closed or broke meanwhile. NULL there: an
 * exception is set, or `broken` is, or the channel was closed. */
static PyObject *end(struct queue_object *self, PyObject *result)
{
    PyObject *type, *value, *traceback;
    PyErr_Fetch(&type, &value, &traceback);
    const int left = state_of(Py_TYPE((PyObject *)self))->core->channel_leave(self->channel, self->broken);
    self->broken = false;
    if (type) {
        PyErr_Restore(type, value, traceback);
        return NULL;
    }
    if (left < 0)
        Py_CLEAR(result);
    else if (!result)
        PyErr_SetString(PyExc_RuntimeError, "the wait ended without a reason");
    return result;
}

/* The doorbell is something that the peer holds too: it may make us block, but not whoever waits for the GIL. */
static void signal_peer(struct endpoint *endpoint)
{
    Py_BEGIN_ALLOW_THREADS
    endpoint_signal(endpoint);
    Py_END_ALLOW_THREADS
}

/* RING_FULL is an answer; for everything else but RING_OK it is false: an exception is set, or `broken` is. */
static bool stage(struct queue_object *self, bool write, unsigned long long slot, unsigned long long offset,
                  uint32_t blocks, enum ring_status *status)
{
    const uint64_t lba = offset / self->queue.block_bytes;
    if (PyErr_Occurred())
        return false;
    if (slot >= self->queue.slots || self->queue.slot[slot].transaction_id != 0) {
        PyErr_Format(PyExc_ValueError, "slot %llu: want a free one below %u", slot, (unsigned)self->queue.slots);
        return false;
    }
    if (offset % self->queue.block_bytes || lba > self->disk_blocks || blocks > self->disk_blocks - lba) {
        PyErr_Format(PyExc_ValueError, "offset %llu: want whole blocks of %u inside the disk", offset,
                     (unsigned)self->queue.block_bytes);
        return false;
    }
    *status = block_queue_stage(&self->queue, (uint32_t)slot, write, lba, blocks);
    if (*status == RING_TOO_LARGE)
        PyErr_SetString(PyExc_ValueError, "the ring is too small for a request of that size");
    self->broken = *status == RING_CORRUPT;
    return *status == RING_OK || *status == RING_FULL;
}

static bool blocks_fit(struct queue_object *self, unsigned long blocks)
{
    if (blocks != 0 && blocks <= self->queue.slot_bytes / self->queue.block_bytes)
        return true;
    PyErr_Format(PyExc_ValueError, "%lu blocks: want 1 to %u", blocks,
                 (unsigned)(self->queue.slot_bytes / self->queue.block_bytes));
    return false;
}

static PyObject *stage_all(struct queue_object *self, bool write, PyObject *slots, PyObject *offsets, uint32_t blocks)
{
    enum ring_status status = RING_OK;
    const Py_ssize_t count = PyList_Size(slots);
    Py_ssize_t done = 0;
    bool good = true;
    while (good && status == RING_OK && done < count) {
        const unsigned long long slot = PyLong_AsUnsignedLongLong(PyList_GetItem(slots, done));
        const unsigned long long offset = PyLong_AsUnsignedLongLong(PyList_GetItem(offsets, done));
        good = stage(self, write, slot, offset, blocks, &status);
        done += good && status == RING_OK;
    }
    if (block_queue_flush(&self->queue)) /* also after a mistake: what was staged is in flight, the slots say so */
        signal_peer(self->queue.endpoint);
    return good ? PyLong_FromSsize_t(done) : NULL;
}

static PyObject *queue_submit(PyObject *object, PyObject *args)
{
    struct queue_object *self = (struct queue_object *)object;
    PyObject *slots, *offsets;
    int write;
    unsigned int blocks;
    if (!PyArg_ParseTuple(args, "pO!O!I", &write, &PyList_Type, &slots, &PyList_Type, &offsets, &blocks)
        || !blocks_fit(self, blocks))
        return NULL;
    if (PyList_Size(offsets) != PyList_Size(slots)) {
        PyErr_SetString(PyExc_ValueError, "want as many offsets as slots");
        return NULL;
    }
    return begin(self) ? end(self, stage_all(self, write, slots, offsets, blocks)) : NULL;
}

/* Wait until there is a packet. 1: there is; 0: timeout; -1: an exception is set, the channel is closed, or `broken`.
 * owes_signal: wake the peer first. */
static int wait_for_packet(struct queue_object *self, uint64_t deadline_ns, bool owes_signal)
{
    struct endpoint *endpoint = self->queue.endpoint;
    struct wait_progress progress = {0};
    enum wait_result result = WAIT_NOT_YET;
    if (!owes_signal) { /* the peer is awake: it may answer before the GIL could be dropped and taken again */
        const uint32_t limit_ns = endpoint_spin_limit_ns(endpoint, WAIT_FOR_DATA);
        progress.spun_ns = limit_ns < ENDPOINT_LOCKED_SPIN_NS ? limit_ns : ENDPOINT_LOCKED_SPIN_NS;
        result = endpoint_spin(endpoint, WAIT_FOR_DATA, 0, progress.spun_ns);
    }
    while (result == WAIT_NOT_YET || result == WAIT_INTERRUPTED) {
        if (result == WAIT_INTERRUPTED && PyErr_CheckSignals() < 0)
            return -1;
        Py_BEGIN_ALLOW_THREADS
        if (owes_signal)
            endpoint_signal(endpoint);
        owes_signal = false;
        result = endpoint_wait(endpoint, WAIT_FOR_DATA, 0, deadline_ns, &progress);
        Py_END_ALLOW_THREADS
    }
    self->broken = result == WAIT_CORRUPT;
    return result == WAIT_READY ? 1 : result == WAIT_TIMEOUT ? 0 : -1;
}

static bool is_troubled(const struct queue_object *self)
{
    return PyList_Size(self->failed) > 0 || PyList_Size(self->foreign) > 0;
}

static bool keep_foreign(struct queue_object *self, const struct ring_packet *found)
{
    PyObject *payload = PyBytes_FromStringAndSize(NULL, found->payload_bytes);
    if (!payload)
        return false;
    ring_copy_out(&self->queue.endpoint->reader, found->payload_at, PyBytes_AsString(payload), found->payload_bytes);
    return result_list_add(self->foreign,
                           Py_BuildValue("(iiKyN)", (int)found->type, (int)found->flags,
                                         (unsigned long long)found->transaction_id, "", payload));
}

#define NO_SLOT UINT32_MAX

/* Take in everything that is there; `done` gets the slots that ended well, but for `own`. False: an exception is set, or
 * `broken` is. Whatever happens, what was looked at is released. */
static bool take_all(struct queue_object *self, PyObject *done, uint32_t own)
{
    struct endpoint *endpoint = self->queue.endpoint;
    struct ring_packet found;
    struct storvsp_packet packet;
    uint32_t slot;
    bool good = true;
    enum ring_status status = RING_OK;
    while (good && (status = ring_peek(&endpoint->reader, &found)) == RING_OK) {
        switch (block_queue_take(&self->queue, &found, &slot, &packet)) {
        case BLOCK_DONE:
            good = slot == own || result_list_add(done, PyLong_FromUnsignedLong(slot));
            break;
        case BLOCK_FAILED:
            good = result_list_add(
                self->failed,
                Py_BuildValue("(Iy#)", (unsigned int)slot, (const char *)&packet, (Py_ssize_t)sizeof packet));
            break;
        case BLOCK_FOREIGN:
            good = keep_foreign(self, &found);
            break;
        }
        ring_hold(&endpoint->reader, &found);
    }
    if (ring_release(&endpoint->reader))
        signal_peer(endpoint);
    self->broken = status == RING_CORRUPT;
    return good && !self->broken;
}

static PyObject *reap(struct queue_object *self, long long timeout_ns)
{
    PyObject *done = result_list_take(&self->ended);
    if (!done)
        return NULL;
    const bool wait = timeout_ns != 0 && PyList_Size(done) == 0 && ring_poll(&self->queue.endpoint->reader) == RING_EMPTY;
    if ((wait && wait_for_packet(self, deadline_of(timeout_ns), false) < 0) || !take_all(self, done, NO_SLOT))
        Py_CLEAR(done);
    return done;
}

static PyObject *queue_reap(PyObject *object, PyObject *argument)
{
    struct queue_object *self = (struct queue_object *)object;
    const long long timeout_ns = PyLong_AsLongLong(argument);
    if (timeout_ns == -1 && PyErr_Occurred())
        return NULL;
    return begin(self) ? end(self, reap(self, timeout_ns)) : NULL;
}

/* Ring space for one more request. In flight are requests whose answers we take in meanwhile, or there is only a server
 * that has not released yet what it answered. False: an exception is set, the channel is closed, or `broken`. */
static bool wait_for_space(struct queue_object *self)
{
    const struct timespec pause = {.tv_nsec = SPACE_PAUSE_NS};
    if (self->queue.in_flight > 0)
        return wait_for_packet(self, ENDPOINT_FOREVER, false) > 0 && take_all(self, self->ended, NO_SLOT);
    Py_BEGIN_ALLOW_THREADS
    nanosleep(&pause, NULL);
    Py_END_ALLOW_THREADS
    if (PyErr_CheckSignals() < 0 || atomic_load(&self->queue.endpoint->closed))
        return false;
    return take_all(self, self->ended, NO_SLOT); /* answers to what was in flight before this queue was made */
}

/* True: the request ended well, and there is nothing else to look at. False: look at the failed and foreign packets, and at
 * in_flight, for the time may have been over. */
static PyObject *transfer(struct queue_object *self, bool write, unsigned long slot, uint64_t offset, uint32_t blocks,
                          long long timeout_ns)
{
    enum ring_status status;
    do {
        if (!stage(self, write, slot, offset, blocks, &status) || (status == RING_FULL && !wait_for_space(self)))
            return NULL;
    } while (status == RING_FULL);
    bool owes_signal = block_queue_flush(&self->queue);
    const uint64_t deadline_ns = deadline_of(timeout_ns);
    while (self->queue.slot[slot].transaction_id != 0) {
        const int found = owes_signal || ring_poll(&self->queue.endpoint->reader) == RING_EMPTY
                              ? wait_for_packet(self, deadline_ns, owes_signal)
                              : 1;
        owes_signal = false;
        if (found == 0)
            break;
        if (found < 0 || !take_all(self, self->ended, (uint32_t)slot))
            return NULL;
    }
    return PyBool_FromLong(self->queue.slot[slot].transaction_id == 0 && !is_troubled(self));
}

/* (write, slot, offset, blocks, timeout_ns), all by position: the shortest way in. */
static PyObject *queue_transfer(PyObject *object, PyObject *const *args, Py_ssize_t nargs)
{
    struct queue_object *self = (struct queue_object *)object;
    if (nargs != 5) {
        PyErr_SetString(PyExc_TypeError, "transfer() takes 5 arguments");
        return NULL;
    }
    const int write = PyObject_IsTrue(args[0]);
    const unsigned long slot = PyLong_AsUnsignedLong(args[1]);
    const unsigned long long offset = PyLong_AsUnsignedLongLong(args[2]);
    const unsigned long blocks = PyLong_AsUnsignedLong(args[3]);
    const long long timeout_ns = PyLong_AsLongLong(args[4]);
    if (PyErr_Occurred() || !blocks_fit(self, blocks))
        return NULL;
    return begin(self) ? end(self, transfer(self, write > 0, slot, offset, (uint32_t)blocks, timeout_ns)) : NULL;
}

static PyObject *queue_get_in_flight(PyObject *object, void *unused)
{
    return PyLong_FromUnsignedLong(((struct queue_object *)object)->queue.in_flight);
}

static PyObject *queue_get_sequence(PyObject *object, void *unused)
{
    return PyLong_FromUnsignedLongLong(((struct queue_object *)object)->queue.sequence);
}

static PyObject *queue_take_failed(PyObject *object, PyObject *unused)
{
    return result_list_take(&((struct queue_object *)object)->failed);
}

static PyObject *queue_take_foreign(PyObject *object, PyObject *unused)
{
    return result_list_take(&((struct queue_object *)object)->foreign);
}

static PyObject *queue_get_troubled(PyObject *object, void *unused)
{
    return PyBool_FromLong(is_troubled((struct queue_object *)object));
}

static PyMethodDef queue_methods[] = {
    {"submit", queue_submit, METH_VARARGS, NULL},
    {"reap", queue_reap, METH_O, NULL},
    {"transfer", (PyCFunction)(void (*)(void))queue_transfer, METH_FASTCALL, NULL},
    {"take_failed", queue_take_failed, METH_NOARGS, NULL},
    {"take_foreign", queue_take_foreign, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef queue_properties[] = {
    {"in_flight", queue_get_in_flight, NULL, NULL, NULL},
    {"sequence", queue_get_sequence, NULL, NULL, NULL},
    {"troubled", queue_get_troubled, NULL, NULL, NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot queue_slots[] = {
    {Py_tp_new, queue_new},
    {Py_tp_dealloc, queue_dealloc},
    {Py_tp_methods, queue_methods},
    {Py_tp_getset, queue_properties},
    {0, NULL},
};

PyType_Spec queue_spec = {
    .name = "partitions.storage._blockio.Queue",
    .basicsize = sizeof(struct queue_object),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = queue_slots,
};
