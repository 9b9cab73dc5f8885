/* The type MessageServer: message_server.h for Python. */
#include "blockio.h"

#include "message_server.h"

enum { RECORD, HEAD, PACKET, AREA, SEAM, ARMED, BUFFERS };

struct message_server_object {
    PyObject_HEAD
    PyObject *lock;
    Py_buffer buffer[BUFFERS]; /* keep what `server` points into alive */
    struct message_server server;
};

static const struct {
    const char *name;
    size_t bytes, alignment;
} shapes[BUFFERS] = {
    [RECORD] = {"record", sizeof(struct message_record), _Alignof(struct message_record)},
    [HEAD] = {"head", sizeof(struct message_head), _Alignof(struct message_head)},
    [PACKET] = {"packet", STORVSP_PACKET_BYTES, 1},
    [AREA] = {"area", MESSAGE_DATA_BYTES_MAX, 1},
    [SEAM] = {"seam", sizeof(struct seam), _Alignof(struct seam)},
    [ARMED] = {"armed", sizeof(uint32_t), _Alignof(uint32_t)},
};

static bool take_buffer(struct message_server_object *self, int which, PyObject *object)
{
    Py_buffer *buffer = &self->buffer[which];
    if (PyObject_GetBuffer(object, buffer, PyBUF_WRITABLE) < 0)
        return false;
    if ((size_t)buffer->len >= shapes[which].bytes && (uintptr_t)buffer->buf % shapes[which].alignment == 0)
        return true;
    PyErr_Format(PyExc_ValueError, "%s: want %zu bytes, %zu-aligned", shapes[which].name, shapes[which].bytes,
                 shapes[which].alignment);
    return false;
}

static PyObject *message_server_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"descriptor", "size_bytes", "block_bytes", "max_transfer_bytes", "read_only", "lock",
                            "record", "head", "packet", "area", "seam", "armed", NULL};
    PyObject *lock, *given[BUFFERS];
    int fd, read_only;
    unsigned long long size_bytes;
    unsigned int block_bytes, max_transfer_bytes;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "iKIIpO!OOOOOO", names, &fd, &size_bytes, &block_bytes,
                                     &max_transfer_bytes, &read_only, state_of(type)->lock_type, &lock, &given[RECORD],
                                     &given[HEAD], &given[PACKET], &given[AREA], &given[SEAM], &given[ARMED]))
        return NULL;
    if (block_bytes == 0 || size_bytes % block_bytes || size_bytes > INT64_MAX || max_transfer_bytes == 0) {
        PyErr_SetString(PyExc_ValueError, "size_bytes: want whole blocks");
        return NULL;
    }
    allocfunc alloc = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
    struct message_server_object *self = (struct message_server_object *)alloc(type, 0);
    if (!self)
        return NULL;
    Py_INCREF(lock);
    self->lock = lock;
    for (int which = 0; which < BUFFERS; which++)
        if (!take_buffer(self, which, given[which])) {
            Py_DECREF(self);
            return NULL;
        }
    self->server.fd = fd;
    self->server.lock = device_lock_of(lock);
    self->server.record = self->buffer[RECORD].buf;
    self->server.head = self->buffer[HEAD].buf;
    self->server.packet = self->buffer[PACKET].buf;
    self->server.area = self->buffer[AREA].buf;
    self->server.seam = self->buffer[SEAM].buf;
    self->server.armed = self->buffer[ARMED].buf;
    self->server.disk = (struct block_geometry){
        .block_bytes = block_bytes,
        .max_transfer_bytes =
            max_transfer_bytes < MESSAGE_DATA_BYTES_MAX ? max_transfer_bytes : MESSAGE_DATA_BYTES_MAX,
        .blocks = size_bytes / block_bytes,
        .writable = !read_only,
    };
    return (PyObject *)self;
}

static void message_server_dealloc(PyObject *object)
{
    struct message_server_object *self = (struct message_server_object *)object;
    PyTypeObject *type = Py_TYPE(object);
    for (int which = 0; which < BUFFERS; which++)
        if (self->buffer[which].obj)
            PyBuffer_Release(&self->buffer[which]);
    Py_XDECREF(self->lock);
    freefunc free_object = (freefunc)PyType_GetSlot(type, Py_tp_free);
    free_object(object);
    Py_DECREF(type);
}

/* (bytes received, longer?) of a message for Python; (0, False): the client is gone; None: a turn is over. */
static PyObject *message_server_serve(PyObject *object, PyObject *argument)
{
    struct message_server *server = &((struct message_server_object *)object)->server;
    const int socket = (int)PyLong_AsLong(argument);
    if (socket == -1 && PyErr_Occurred())
        return NULL;
    enum message_server_result result;
    Py_BEGIN_ALLOW_THREADS
    result = message_server_run(server, socket);
    Py_END_ALLOW_THREADS
    switch (result) {
    case MESSAGE_SERVER_LEFT:
        return Py_BuildValue("(nN)", (Py_ssize_t)server->received_bytes, PyBool_FromLong(server->truncated));
    case MESSAGE_SERVER_GONE:
        return Py_BuildValue("(iN)", 0, PyBool_FromLong(false));
    default:
        if (PyErr_CheckSignals() < 0)
            return NULL;
        Py_RETURN_NONE;
    }
}

static PyObject *message_server_statistics(PyObject *object, PyObject *unused)
{
    struct message_server *server = &((struct message_server_object *)object)->server;
    return Py_BuildValue("{sKsKsKsK}", "reads", (unsigned long long)server->reads, "writes",
                         (unsigned long long)server->writes, "bytes_read", (unsigned long long)server->bytes_read,
                         "bytes_written", (unsigned long long)server->bytes_written);
}

static PyObject *message_server_holds_device(PyObject *object, void *unused)
{
    return PyBool_FromLong(((struct message_server_object *)object)->server.holds_device);
}

static PyObject *message_server_busy(PyObject *object, void *unused)
{
    return PyBool_FromLong(((struct message_server_object *)object)->server.busy);
}

static PyObject *message_server_served(PyObject *object, void *unused)
{
    struct message_server *server = &((struct message_server_object *)object)->server;
    return PyLong_FromUnsignedLongLong(server->reads + server->writes);
}

static PyGetSetDef message_server_properties[] = {
    {"holds_device", message_server_holds_device, NULL, NULL, NULL},
    {"busy", message_server_busy, NULL, NULL, NULL},
    {"served", message_server_served, NULL, NULL, NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyMethodDef message_server_methods[] = {
    {"serve", message_server_serve, METH_O, NULL},
    {"statistics", message_server_statistics, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot message_server_slots[] = {
    {Py_tp_new, message_server_new},
    {Py_tp_dealloc, message_server_dealloc},
    {Py_tp_methods, message_server_methods},
    {Py_tp_getset, message_server_properties},
    {0, NULL},
};

PyType_Spec message_server_spec = {
    .name = "partitions.storage._blockio.MessageServer",
    .basicsize = sizeof(struct message_server_object),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = message_server_slots,
};
