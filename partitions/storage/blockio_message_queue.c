/* The type MessageQueue: what Queue is for a ring, over message_calls.h. A server that is called takes one at a time. */
#include "message_client.h"

#include "block_queue.h"
#include "block_request.h"
#include "result_list.h"

struct message_queue_object {
    PyObject_HEAD
    PyObject *calls, *recover;
    PyObject *failed;  /* list of (slot, packet) */
    PyObject *ended;   /* list of slots that ended well while transfer() waited for its own: for the next reap() */
    PyObject *foreign; /* list of (type, flags, transaction id, extra header, payload) */
    Py_ssize_t start;  /* of the slots, in the calls' data area */
    uint32_t slots, slot_bytes, block_bytes, in_flight;
    uint64_t disk_blocks, sequence;
    struct block_slot *slot;
};

static bool fill(struct message_queue_object *self, PyObject *area)
{
    Py_buffer buffer;
    if (PyObject_GetBuffer(area, &buffer, PyBUF_WRITABLE) < 0)
        return false;
    const size_t wanted = (size_t)self->slots * self->slot_bytes;
    self->start = message_calls_place(self->calls, buffer.buf, buffer.len);
    if (self->start >= 0 && (size_t)buffer.len < wanted)
        PyErr_Format(PyExc_ValueError, "area: %zd bytes, want %zu", buffer.len, wanted);
    PyBuffer_Release(&buffer); /* the calls keep what it is a part of */
    self->failed = PyList_New(0);
    self->foreign = PyList_New(0);
    self->ended = PyList_New(0);
    self->slot = PyMem_Calloc(self->slots, sizeof *self->slot);
    if (!self->slot && !PyErr_Occurred())
        PyErr_NoMemory();
    return !PyErr_Occurred();
}

static PyObject *queue_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"calls",       "recover",  "area", "slots", "slot_bytes", "block_bytes",
                            "disk_blocks", "sequence", NULL};
    PyObject *calls, *recover, *area;
    unsigned long long disk_blocks, sequence;
    unsigned int slots, slot_bytes, block_bytes;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O!OOIIIKK", names, state_of(type)->calls_type, &calls, &recover, &area,
                                     &slots, &slot_bytes, &block_bytes, &disk_blocks, &sequence))
        return NULL;
    if (slots == 0 || slots > BLOCK_QUEUE_MAX_SLOTS || slot_bytes == 0 || slot_bytes > MESSAGE_DATA_BYTES_MAX
        || block_bytes == 0) {
        PyErr_Format(PyExc_ValueError, "want 1 to %u slots, at most %u bytes each", BLOCK_QUEUE_MAX_SLOTS,
                     MESSAGE_DATA_BYTES_MAX);
        return NULL;
    }
    allocfunc alloc = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
    struct message_queue_object *self = (struct message_queue_object *)alloc(type, 0);
    if (!self)
        return NULL;
    Py_INCREF(calls);
    Py_INCREF(recover);
    self->calls = calls;
    self->recover = recover;
    self->slots = slots;
    self->slot_bytes = slot_bytes;
    self->block_bytes = block_bytes;
    self->disk_blocks = disk_blocks;
    self->sequence = sequence;
    if (!fill(self, area))
        Py_CLEAR(self);
    return (PyObject *)self;
}

static void queue_dealloc(PyObject *object)
{
    struct message_queue_object *self = (struct message_queue_object *)object;
    PyTypeObject *type = Py_TYPE(object);
    Py_XDECREF(self->calls);
    Py_XDECREF(self->recover);
    Py_XDECREF(self->failed);
    Py_XDECREF(self->ended);
    Py_XDECREF(self->foreign);
    PyMem_Free(self->slot);
    freefunc free_object = (freefunc)PyType_GetSlot(type, Py_tp_free);
    free_object(object);
    Py_DECREF(type);
}

/* Every call is between these two: we are the calls' one user meanwhile. */
static struct message_calls *begin(struct message_queue_object *self)
{
    struct message_calls *calls = message_calls_enter(self->calls);
    if (calls && atomic_load_explicit(&calls->closed, memory_order_relaxed)) {
        if (message_calls_recover(self->recover, false)) /* it says what has happened */
            PyErr_SetString(PyExc_RuntimeError, "closed, and connected again");
        message_calls_leave(self->calls);
        return NULL;
    }
    return calls;
}

static PyObject *end(struct message_queue_object *self, PyObject *result)
{
    message_calls_leave(self->calls);
    return result;
}

enum staged { STAGED, NO_ROOM, REFUSED /* an exception is set */ };

static enum staged stage(struct message_queue_object *self, struct message_calls *calls, bool write, unsigned long long slot,
                         unsigned long long offset, uint32_t blocks)
{
    const uint64_t lba = offset / self->block_bytes;
    struct storvsp_packet packet;
    if (PyErr_Occurred())
        return REFUSED;
    if (slot >= self->slots || self->slot[slot].transaction_id != 0) {
        PyErr_Format(PyExc_ValueError, "slot %llu: want a free one below %u", slot, (unsigned)self->slots);
        return REFUSED;
    }
    if (offset % self->block_bytes || lba > self->disk_blocks || blocks > self->disk_blocks - lba) {
        PyErr_Format(PyExc_ValueError, "offset %llu: want whole blocks of %u inside the disk", offset,
                     (unsigned)self->block_bytes);
        return REFUSED;
    }
    const uint32_t bytes = blocks * self->block_bytes;
    const uint64_t transaction_id = (self->sequence + 1) << BLOCK_QUEUE_SLOT_BITS | slot;
    uint8_t *const data = message_calls_area(self->calls, self->start + (Py_ssize_t)(slot * self->slot_bytes), bytes);
    if (!data)
        return REFUSED;
    block_request_build(&packet, write, lba, blocks, bytes);
    struct message_call *call = message_calls_add(calls, &packet, sizeof packet, transaction_id, bytes, write);
    if (!call)
        return NO_ROOM;
    call->one = (struct iovec){.iov_base = data, .iov_len = bytes};
    call->data = &call->one;
    call->data_count = 1;
    self->sequence++;
    self->slot[slot] = (struct block_slot){.transaction_id = transaction_id, .bytes = bytes};
    self->in_flight++;
    return STAGED;
}

static bool blocks_fit(const struct message_queue_object *self, unsigned long blocks)
{
    if (blocks != 0 && blocks <= self->slot_bytes / self->block_bytes)
        return true;
    PyErr_Format(PyExc_ValueError, "%lu blocks: want 1 to %u", blocks, (unsigned)(self->slot_bytes / self->block_bytes));
    return false;
}

static PyObject *stage_all(struct message_queue_object *self, struct message_calls *calls, bool write, PyObject *slots,
                           PyObject *offsets, uint32_t blocks)
{
    enum staged staged = STAGED;
    const Py_ssize_t count = PyList_Size(slots);
    Py_ssize_t done = 0;
    while (staged == STAGED && done < count) {
        const unsigned long long slot = PyLong_AsUnsignedLongLong(PyList_GetItem(slots, done));
        const unsigned long long offset = PyLong_AsUnsignedLongLong(PyList_GetItem(offsets, done));
        staged = stage(self, calls, write, slot, offset, blocks);
        done += staged == STAGED;
    }
    if (!calls->sent) {
        Py_BEGIN_ALLOW_THREADS
        (void)message_calls_send(calls); /* lost: the next reap() says so; also after a mistake, what was staged is in flight */
        Py_END_ALLOW_THREADS
    }
    return staged == REFUSED ? NULL : PyLong_FromSsize_t(done);
}

static PyObject *queue_submit(PyObject *object, PyObject *args)
{
    struct message_queue_object *self = (struct message_queue_object *)object;
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
    struct message_calls *calls = begin(self);
    return calls ? end(self, stage_all(self, calls, write, slots, offsets, blocks)) : NULL;
}

static bool is_troubled(const struct message_queue_object *self)
{
    return PyList_Size(self->failed) > 0 || PyList_Size(self->foreign) > 0;
}

#define NO_SLOT UINT32_MAX

/* `done` gets the slot if it ended well and is not `own`. False: an exception is set. */
static bool take_in(struct message_queue_object *self, const struct message_reply *reply, PyObject *done, uint32_t own)
{
    const uint64_t transaction_id = reply->head.transaction_id;
    const uint32_t number = transaction_id & ((1u << BLOCK_QUEUE_SLOT_BITS) - 1);
    if (number >= self->slots || transaction_id == 0 || self->slot[number].transaction_id != transaction_id)
        return result_list_add(self->foreign, Py_BuildValue("(iiKyy#)", (int)RING_PACKET_COMPLETION, 0,
                                                            (unsigned long long)transaction_id, "",
                                                            (const char *)&reply->packet,
                                                            (Py_ssize_t)reply->head.packet_bytes));
    self->slot[number].transaction_id = 0;
    self->in_flight--;
    if (block_request_went_well(&reply->packet, self->slot[number].bytes))
        return number == own || result_list_add(done, PyLong_FromUnsignedLong(number));
    return result_list_add(self->failed, Py_BuildValue("(Iy#)", (unsigned int)number, (const char *)&reply->packet,
                                                       (Py_ssize_t)sizeof reply->packet));
}

/* Wait for a reply. 1: it was taken in; 0: timeout; -1: an exception is set. */
static int take(struct message_queue_object *self, struct message_calls *calls, uint64_t deadline_ns, PyObject *done,
                uint32_t own)
{
    struct message_reply reply;
    for (;;) {
        enum calls_result result;
        Py_BEGIN_ALLOW_THREADS
        result = message_calls_receive(calls, deadline_ns, &reply);
        Py_END_ALLOW_THREADS
        switch (result) {
        case CALLS_REPLY:
            return take_in(self, &reply, done, own) ? 1 : -1;
        case CALLS_NOTHING:
            return 0;
        case CALLS_INTERRUPTED:
            if (PyErr_CheckSignals() < 0)
                return -1;
            break;
        case CALLS_GONE:
        case CALLS_BROKEN:
            if (!message_calls_recover(self->recover, result == CALLS_BROKEN))
                return -1;
            break;
        }
    }
}

static PyObject *reap(struct message_queue_object *self, struct message_calls *calls, long long timeout_ns)
{
    PyObject *done = result_list_take(&self->ended);
    if (!done)
        return NULL;
    if (PyList_Size(done) == 0 && take(self, calls, deadline_of(timeout_ns), done, NO_SLOT) < 0)
        Py_CLEAR(done);
    return done;
}

static PyObject *queue_reap(PyObject *object, PyObject *argument)
{
    struct message_queue_object *self = (struct message_queue_object *)object;
    const long long timeout_ns = PyLong_AsLongLong(argument);
    if (timeout_ns == -1 && PyErr_Occurred())
        return NULL;
    struct message_calls *calls = begin(self);
    return calls ? end(self, reap(self, calls, timeout_ns)) : NULL;
}

/* True: the request ended well, and there is nothing else to look at. False: look at the failed and foreign packets, and at
 * in_flight, for the time may have been over. */
static PyObject *transfer(struct message_queue_object *self, struct message_calls *calls, bool write, unsigned long slot,
                          uint64_t offset, uint32_t blocks, long long timeout_ns)
{
    enum staged staged;
    while ((staged = stage(self, calls, write, slot, offset, blocks)) == NO_ROOM)
        if (take(self, calls, MESSAGE_CALLS_FOREVER, self->ended, NO_SLOT) < 0)
            return NULL;
    if (staged == REFUSED)
        return NULL;
    const uint64_t deadline_ns = deadline_of(timeout_ns);
    while (self->slot[slot].transaction_id != 0) {
        const int taken = take(self, calls, deadline_ns, self->ended, (uint32_t)slot);
        if (taken < 0)
            return NULL;
        if (taken == 0)
            break;
    }
    return PyBool_FromLong(self->slot[slot].transaction_id == 0 && !is_troubled(self));
}

/* (write, slot, offset, blocks, timeout_ns), all by position: the shortest way in. */
static PyObject *queue_transfer(PyObject *object, PyObject *const *args, Py_ssize_t nargs)
{
    struct message_queue_object *self = (struct message_queue_object *)object;
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
    struct message_calls *calls = begin(self);
    return calls ? end(self, transfer(self, calls, write > 0, slot, offset, (uint32_t)blocks, timeout_ns)) : NULL;
}

static PyObject *queue_get_in_flight(PyObject *object, void *unused)
{
    return PyLong_FromUnsignedLong(((struct message_queue_object *)object)->in_flight);
}

static PyObject *queue_get_sequence(PyObject *object, void *unused)
{
    return PyLong_FromUnsignedLongLong(((struct message_queue_object *)object)->sequence);
}

static PyObject *queue_take_failed(PyObject *object, PyObject *unused)
{
    return result_list_take(&((struct message_queue_object *)object)->failed);
}

static PyObject *queue_take_foreign(PyObject *object, PyObject *unused)
{
    return result_list_take(&((struct message_queue_object *)object)->foreign);
}

static PyObject *queue_get_troubled(PyObject *object, void *unused)
{
    return PyBool_FromLong(is_troubled((struct message_queue_object *)object));
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

PyType_Spec message_queue_spec = {
    .name = "partitions.storage._blockio.MessageQueue",
    .basicsize = sizeof(struct message_queue_object),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = queue_slots,
};
