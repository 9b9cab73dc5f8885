/* The type MessageCalls: message_calls.h for Python. */
#include "message_client.h"

#include <string.h>

struct calls_object {
    PyObject_HEAD
    Py_buffer data;
    bool busy;
    struct message_calls calls;
};

struct message_calls *message_calls_of(PyObject *object)
{
    return &((struct calls_object *)object)->calls;
}

struct message_calls *message_calls_enter(PyObject *object)
{
    struct calls_object *self = (struct calls_object *)object;
    if (self->busy) {
        PyErr_SetString(PyExc_RuntimeError, "another thread sends or receives");
        return NULL;
    }
    self->busy = true;
    return &self->calls;
}

void message_calls_leave(PyObject *object)
{
    ((struct calls_object *)object)->busy = false;
}

uint8_t *message_calls_area(PyObject *object, Py_ssize_t start, Py_ssize_t count)
{
    const Py_buffer *data = &((struct calls_object *)object)->data;
    if (count >= 0 && count <= (Py_ssize_t)MESSAGE_DATA_BYTES_MAX && start >= 0 && start <= data->len
        && count <= data->len - start)
        return (uint8_t *)data->buf + start;
    PyErr_Format(PyExc_ValueError, "%zd bytes at %zd: not of the data area, or too many", count, start);
    return NULL;
}

Py_ssize_t message_calls_place(PyObject *object, const void *bytes, Py_ssize_t count)
{
    const Py_buffer *data = &((struct calls_object *)object)->data;
    const uintptr_t base = (uintptr_t)data->buf, at = (uintptr_t)bytes;
    if (at >= base && at - base <= (size_t)data->len && (size_t)count <= (size_t)data->len - (at - base))
        return (Py_ssize_t)(at - base);
    PyErr_SetString(PyExc_ValueError, "memory that is not of the data area");
    return -1;
}

bool message_calls_recover(PyObject *recover, bool broken)
{
    PyObject *result = PyObject_CallFunctionObjArgs(recover, broken ? Py_True : Py_False, NULL);
    Py_XDECREF(result);
    return result != NULL;
}

static PyObject *calls_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"data", NULL};
    PyObject *data;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O", names, &data))
        return NULL;
    allocfunc alloc = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
    struct calls_object *self = (struct calls_object *)alloc(type, 0);
    if (!self)
        return NULL;
    self->calls.socket = -1;
    self->calls.call = PyMem_Calloc(MESSAGE_CALLS_MAX, sizeof *self->calls.call);
    if (!self->calls.call)
        PyErr_NoMemory();
    if (!self->calls.call || PyObject_GetBuffer(data, &self->data, PyBUF_WRITABLE) < 0)
        Py_CLEAR(self);
    return (PyObject *)self;
}

static void calls_dealloc(PyObject *object)
{
    struct calls_object *self = (struct calls_object *)object;
    PyTypeObject *type = Py_TYPE(object);
    if (self->data.obj)
        PyBuffer_Release(&self->data);
    PyMem_Free(self->calls.call);
    freefunc free_object = (freefunc)PyType_GetSlot(type, Py_tp_free);
    free_object(object);
    Py_DECREF(type);
}

static bool add(PyObject *object, struct message_calls *calls, PyObject *args, bool *added)
{
    const char *payload;
    Py_ssize_t payload_bytes, start, count;
    unsigned long long transaction_id;
    struct storvsp_packet packet = {0};
    if (!PyArg_ParseTuple(args, "y#Knn", &payload, &payload_bytes, &transaction_id, &start, &count))
        return false;
    if (payload_bytes > (Py_ssize_t)sizeof packet) {
        PyErr_Format(PyExc_ValueError, "a packet of %zd bytes", payload_bytes);
        return false;
    }
    uint8_t *const data = message_calls_area(object, start, count);
    if (!data)
        return false;
    memcpy(&packet, payload, (size_t)payload_bytes);
    struct message_call *call = message_calls_add(calls, &packet, (uint32_t)payload_bytes, transaction_id, (uint32_t)count,
                                                  count && packet.direction == SRB_DIRECTION_WRITE);
    *added = call != NULL;
    if (call) {
        call->one = (struct iovec){.iov_base = data, .iov_len = (size_t)count};
        call->data = &call->one;
        call->data_count = count != 0;
    }
    return true;
}

/* (payload, transaction id, start and length of its data in the area). False: there is no room for one more. */
static PyObject *calls_add(PyObject *object, PyObject *args)
{
    struct message_calls *calls = message_calls_enter(object);
    bool added;
    if (!calls)
        return NULL;
    const bool good = add(object, calls, args, &added);
    message_calls_leave(object);
    return good ? PyBool_FromLong(added) : NULL;
}

static PyObject *calls_connect(PyObject *object, PyObject *argument)
{
    const int socket = (int)PyLong_AsLong(argument);
    if (socket == -1 && PyErr_Occurred())
        return NULL;
    message_calls_connect(&((struct calls_object *)object)->calls, socket);
    Py_RETURN_NONE;
}

static PyObject *calls_send(PyObject *object, PyObject *unused)
{
    bool sent;
    Py_BEGIN_ALLOW_THREADS
    sent = message_calls_send(&((struct calls_object *)object)->calls);
    Py_END_ALLOW_THREADS
    return PyBool_FromLong(sent);
}

/* (wait?) -> (transaction id, payload) of a reply, or one of enum received. */
static PyObject *calls_receive(PyObject *object, PyObject *argument)
{
    struct message_calls *calls = message_calls_enter(object);
    const int wait = PyObject_IsTrue(argument);
    struct message_reply reply;
    enum calls_result result;
    if (!calls)
        return NULL;
    Py_BEGIN_ALLOW_THREADS
    result = message_calls_receive(calls, wait ? MESSAGE_CALLS_FOREVER : 0, &reply);
    Py_END_ALLOW_THREADS
    message_calls_leave(object);
    switch (result) {
    case CALLS_REPLY:
        return Py_BuildValue("(Ky#)", (unsigned long long)reply.head.transaction_id, (const char *)&reply.packet,
                             (Py_ssize_t)reply.head.packet_bytes);
    case CALLS_INTERRUPTED:
        return PyErr_CheckSignals() < 0 ? NULL : PyLong_FromLong(RECEIVED_NOTHING);
    case CALLS_NOTHING:
        return PyLong_FromLong(RECEIVED_NOTHING);
    default:
        return PyLong_FromLong(result == CALLS_BROKEN ? RECEIVED_BROKEN : RECEIVED_GONE);
    }
}

static PyObject *calls_close(PyObject *object, PyObject *unused)
{
    atomic_store_explicit(&((struct calls_object *)object)->calls.closed, true, memory_order_relaxed);
    Py_RETURN_NONE;
}

/* The data area is its owner's again. Nobody may be inside, or come any more. */
static PyObject *calls_release(PyObject *object, PyObject *unused)
{
    struct calls_object *self = (struct calls_object *)object;
    self->calls.count = 0;
    self->calls.socket = -1;
    if (self->data.obj)
        PyBuffer_Release(&self->data);
    self->data.buf = NULL;
    self->data.len = 0;
    Py_RETURN_NONE;
}

static PyObject *calls_waiting(PyObject *object, void *unused)
{
    return PyLong_FromUnsignedLong(((struct calls_object *)object)->calls.count);
}

static PyObject *calls_packets_sent(PyObject *object, void *unused)
{
    return PyLong_FromUnsignedLongLong(((struct calls_object *)object)->calls.packets_sent);
}

static PyObject *calls_packets_received(PyObject *object, void *unused)
{
    return PyLong_FromUnsignedLongLong(((struct calls_object *)object)->calls.packets_received);
}

static PyObject *calls_lost(PyObject *object, void *unused)
{
    return PyBool_FromLong(((struct calls_object *)object)->calls.lost);
}

static PyMethodDef calls_methods[] = {
    {"add", calls_add, METH_VARARGS, NULL},
    {"connect", calls_connect, METH_O, NULL},
    {"send", calls_send, METH_NOARGS, NULL},
    {"receive", calls_receive, METH_O, NULL},
    {"close", calls_close, METH_NOARGS, NULL},
    {"release", calls_release, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef calls_properties[] = {
    {"waiting", calls_waiting, NULL, NULL, NULL},
    {"lost", calls_lost, NULL, NULL, NULL},
    {"packets_sent", calls_packets_sent, NULL, NULL, NULL},
    {"packets_received", calls_packets_received, NULL, NULL, NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot calls_slots[] = {
    {Py_tp_new, calls_new},
    {Py_tp_dealloc, calls_dealloc},
    {Py_tp_methods, calls_methods},
    {Py_tp_getset, calls_properties},
    {0, NULL},
};

PyType_Spec calls_spec = {
    .name = "partitions.storage._blockio.MessageCalls",
    .basicsize = sizeof(struct calls_object),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = calls_slots,
};
