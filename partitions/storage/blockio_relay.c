/* The type Relay: block_relay.h for Python. */
#include "blockio.h"

#include "block_relay.h"

struct relay_object {
    PyObject_HEAD
    PyObject *channel;
    Py_buffer memory;
    struct block_relay relay;
};

struct block_relay *block_relay_of(PyObject *object)
{
    return &((struct relay_object *)object)->relay;
}

static bool fill(struct relay_object *self, const struct core_api *core, unsigned int slot_bytes)
{
    const size_t slots = (size_t)self->memory.len / slot_bytes;
    struct endpoint *endpoint = core->channel_enter(self->channel); /* it is a channel, and nobody is at it now */
    if (!endpoint || core->channel_leave(self->channel, false) < 0)
        return false;
    if (slots == 0 || slots > BLOCK_RELAY_MAX_SLOTS || (size_t)self->memory.len % slot_bytes) {
        PyErr_Format(PyExc_ValueError, "memory: want 1 to %u whole slots", BLOCK_RELAY_MAX_SLOTS);
        return false;
    }
    self->relay.queue.endpoint = endpoint;
    self->relay.queue.slots = (uint32_t)slots;
    self->relay.queue.slot = PyMem_Calloc(slots, sizeof *self->relay.queue.slot);
    self->relay.relayed = PyMem_Calloc(slots, sizeof *self->relay.relayed);
    self->relay.memory = self->memory.buf;
    if (!self->relay.queue.slot || !self->relay.relayed)
        PyErr_NoMemory();
    return self->relay.queue.slot && self->relay.relayed;
}

static PyObject *relay_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"channel", "memory", "first_pfn", "slot_bytes", "block_bytes", NULL};
    PyObject *channel, *memory;
    unsigned long long first_pfn;
    unsigned int slot_bytes, block_bytes;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OOKII", names, &channel, &memory, &first_pfn, &slot_bytes,
                                     &block_bytes))
        return NULL;
    if (slot_bytes == 0 || slot_bytes % RING_PAGE_BYTES || slot_bytes > STORVSP_MAX_TRANSFER_BYTES || block_bytes == 0) {
        PyErr_Format(PyExc_ValueError, "slot_bytes: want whole pages, at most %u", STORVSP_MAX_TRANSFER_BYTES);
        return NULL;
    }
    allocfunc alloc = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
    struct relay_object *self = (struct relay_object *)alloc(type, 0);
    if (!self)
        return NULL;
    Py_INCREF(channel);
    self->channel = channel;
    self->relay.queue.first_pfn = first_pfn;
    self->relay.queue.slot_bytes = slot_bytes;
    self->relay.queue.block_bytes = block_bytes;
    if (PyObject_GetBuffer(memory, &self->memory, PyBUF_WRITABLE) < 0 || !fill(self, state_of(type)->core, slot_bytes))
        Py_CLEAR(self);
    return (PyObject *)self;
}

static void relay_dealloc(PyObject *object)
{
    struct relay_object *self = (struct relay_object *)object;
    PyTypeObject *type = Py_TYPE(object);
    Py_XDECREF(self->channel);
    if (self->memory.obj)
        PyBuffer_Release(&self->memory);
    PyMem_Free(self->relay.queue.slot);
    PyMem_Free(self->relay.relayed);
    freefunc free_object = (freefunc)PyType_GetSlot(type, Py_tp_free);
    free_object(object);
    Py_DECREF(type);
}

static PyObject *relay_settle(PyObject *object, PyObject *unused)
{
    Py_BEGIN_ALLOW_THREADS
    block_relay_settle(block_relay_of(object));
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

static PyMethodDef relay_methods[] = {
    {"settle", relay_settle, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot relay_slots[] = {
    {Py_tp_new, relay_new},
    {Py_tp_dealloc, relay_dealloc},
    {Py_tp_methods, relay_methods},
    {0, NULL},
};

PyType_Spec relay_spec = {
    .name = "partitions.storage._blockio.Relay",
    .basicsize = sizeof(struct relay_object),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = relay_slots,
};
