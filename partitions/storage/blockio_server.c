/* The type Server: block_server.h for Python. */
#include "blockio.h"

#include "block_forward.h"
#include "block_server.h"

struct server_object {
    PyObject_HEAD
    PyObject *channel, *gpa_map, *lock, *relay; /* keep what `server` points into alive */
    Py_buffer turns;
    struct block_server server;
};

static bool take_turns(struct server_object *self, PyObject *turns, const struct core_api *core)
{
    self->server.endpoint = core->channel_enter(self->channel); /* to be known also while Python has a packet */
    if (!self->server.endpoint || core->channel_leave(self->channel, false) < 0)
        return false;
    if (PyObject_GetBuffer(turns, &self->turns, PyBUF_WRITABLE) < 0)
        return false;
    if ((size_t)self->turns.len < sizeof *self->server.turns
        || (uintptr_t)self->turns.buf % _Alignof(struct block_turns) != 0) {
        PyErr_Format(PyExc_ValueError, "turns: want %zu aligned bytes", sizeof *self->server.turns);
        return false;
    }
    self->server.turns = self->turns.buf;
    return true;
}

static PyObject *server_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"channel", "gpa_map", "descriptor", "size_bytes", "block_bytes", "max_transfer_bytes",
                            "read_only", "lock", "relay", "turns", NULL};
    PyObject *channel, *gpa_map, *lock, *relay = Py_None, *turns = Py_None;
    int fd, read_only;
    unsigned long long size_bytes;
    unsigned int block_bytes, max_transfer_bytes;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OOiKIIpO!|OO", names, &channel, &gpa_map, &fd, &size_bytes, &block_bytes,
                                     &max_transfer_bytes, &read_only, state_of(type)->lock_type, &lock, &relay, &turns))
        return NULL;
    const bool relays = Py_TYPE(relay) == state_of(type)->relay_type, forwards = Py_TYPE(relay) == state_of(type)->forward_type;
    if (relay != Py_None && !relays && !forwards) {
        PyErr_SetString(PyExc_TypeError, "relay: want a Relay, a Forward or None");
        return NULL;
    }
    if (block_bytes == 0 || size_bytes % block_bytes || size_bytes > INT64_MAX || max_transfer_bytes == 0) {
        PyErr_SetString(PyExc_ValueError, "size_bytes: want whole blocks");
        return NULL;
    }
    allocfunc alloc = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
    struct server_object *self = (struct server_object *)alloc(type, 0);
    if (!self)
        return NULL;
    Py_INCREF(channel);
    Py_INCREF(gpa_map);
    Py_INCREF(lock);
    self->lock = lock;
    self->server.lock = device_lock_of(lock);
    self->channel = channel;
    self->gpa_map = gpa_map;
    self->server.fd = fd;
    if (relay != Py_None) {
        Py_INCREF(relay);
        self->relay = relay;
    }
    if (relays)
        self->server.relay = block_relay_of(relay);
    if (forwards)
        self->server.forward = block_forward_of(relay);
    self->server.disk = (struct block_geometry){
        .block_bytes = block_bytes,
        .max_transfer_bytes =
            max_transfer_bytes < STORVSP_MAX_TRANSFER_BYTES ? max_transfer_bytes : STORVSP_MAX_TRANSFER_BYTES,
        .blocks = size_bytes / block_bytes,
        .writable = !read_only,
    };
    if (turns != Py_None && !take_turns(self, turns, state_of(type)->core))
        Py_CLEAR(self);
    return (PyObject *)self;
}

static void server_dealloc(PyObject *object)
{
    struct server_object *self = (struct server_object *)object;
    PyTypeObject *type = Py_TYPE(object);
    Py_XDECREF(self->channel);
    Py_XDECREF(self->gpa_map);
    Py_XDECREF(self->lock);
    Py_XDECREF(self->relay);
    if (self->turns.obj)
        PyBuffer_Release(&self->turns);
    freefunc free_object = (freefunc)PyType_GetSlot(type, Py_tp_free);
    free_object(object);
    Py_DECREF(type);
}

/* True: the next packet is for Python; False: the time is over, or a signal is to be handled. */
static PyObject *server_serve(PyObject *object, PyObject *argument)
{
    struct server_object *self = (struct server_object *)object;
    const struct core_api *core = state_of(Py_TYPE(object))->core;
    const long long timeout_ns = PyLong_AsLongLong(argument);
    if (timeout_ns == -1 && PyErr_Occurred())
        return NULL;
    self->server.holds_device = false; /* also where it does not come to a run */
    self->server.table = core->gpa_enter(self->gpa_map);
    if (!self->server.table)
        return NULL;
    self->server.endpoint = core->channel_enter(self->channel);
    if (!self->server.endpoint) {
        core->gpa_leave(self->gpa_map);
        return NULL;
    }
    enum block_server_result result;
    Py_BEGIN_ALLOW_THREADS
    result = block_server_run(&self->server, deadline_of(timeout_ns));
    Py_END_ALLOW_THREADS
    core->gpa_leave(self->gpa_map);
    if (core->channel_leave(self->channel, result == BLOCK_SERVER_CORRUPT) < 0)
        return NULL;
    return PyBool_FromLong(result == BLOCK_SERVER_PACKET);
}

/* (True): the first request that is not released is next; (False): it is done. */
static PyObject *server_turn(PyObject *object, PyObject *argument)
{
    struct block_server *server = &((struct server_object *)object)->server;
    if (PyObject_IsTrue(argument))
        block_server_begin_turn(server);
    else
        block_server_end_turn(server);
    Py_RETURN_NONE;
}

static PyObject *server_statistics(PyObject *object, PyObject *unused)
{
    const struct block_server_statistics *counted = &((struct server_object *)object)->server.statistics;
    return Py_BuildValue("{sKsKsKsK}", "reads", (unsigned long long)counted->reads, "writes",
                         (unsigned long long)counted->writes, "bytes_read", (unsigned long long)counted->bytes_read,
                         "bytes_written", (unsigned long long)counted->bytes_written);
}

static PyObject *server_holds_device(PyObject *object, void *unused)
{
    return PyBool_FromLong(((struct server_object *)object)->server.holds_device);
}

static PyGetSetDef server_properties[] = {
    {"holds_device", server_holds_device, NULL,
     "After serve(): the next packet was begun, and the device's lock, taken for it, is the caller's to give back.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyMethodDef server_methods[] = {
    {"serve", server_serve, METH_O, NULL},
    {"turn", server_turn, METH_O, NULL},
    {"statistics", server_statistics, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot server_slots[] = {
    {Py_tp_new, server_new},
    {Py_tp_dealloc, server_dealloc},
    {Py_tp_methods, server_methods},
    {Py_tp_getset, server_properties},
    {0, NULL},
};

PyType_Spec server_spec = {
    .name = "partitions.storage._blockio.Server",
    .basicsize = sizeof(struct server_object),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = server_slots,
};
