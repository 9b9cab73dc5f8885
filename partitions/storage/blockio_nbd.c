/* The type NbdEngine: nbd_engine.h for Python. */
#include "blockio.h"

#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

#include "nbd_engine.h"
#include "result_list.h"

struct nbd_object {
    PyObject_HEAD
    PyObject *channel;
    Py_buffer data;
    struct nbd_engine *engine;
    PyObject *ended;  /* list of (connection, nbd_ending) */
    PyObject *failed; /* list of (fragment, packet) */
    bool is_watching;
};

static void nbd_dealloc(PyObject *object)
{
    struct nbd_object *self = (struct nbd_object *)object;
    PyTypeObject *type = Py_TYPE(object);
    if (self->engine) {
        nbd_engine_destroy(self->engine);
        PyMem_Free(self->engine);
    }
    if (self->data.obj)
        PyBuffer_Release(&self->data);
    Py_XDECREF(self->channel);
    Py_XDECREF(self->ended);
    Py_XDECREF(self->failed);
    freefunc free_object = (freefunc)PyType_GetSlot(type, Py_tp_free);
    free_object(object);
    Py_DECREF(type);
}

static bool is_sound(const struct nbd_engine *engine, Py_ssize_t data_bytes, uint64_t blocks)
{
    const uint32_t block = engine->disk.block_bytes;
    return block >= 512 && block <= RING_PAGE_BYTES && (block & (block - 1)) == 0 && blocks > 0
           && blocks <= INT64_MAX / block && data_bytes % RING_PAGE_BYTES == 0
           && data_bytes / RING_PAGE_BYTES >= NBD_POOL_PAGES_MIN && data_bytes / RING_PAGE_BYTES < NBD_NO_PAGE
           && engine->max_fragment_bytes >= RING_PAGE_BYTES && engine->max_fragment_bytes % RING_PAGE_BYTES == 0
           && engine->max_fragment_bytes <= STORVSP_MAX_TRANSFER_BYTES && engine->unmap_bytes_max >= block
           && engine->unmap_bytes_max % block == 0;
}

static PyObject *nbd_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"channel", "data", "first_pfn", "block_bytes", "disk_blocks", "max_fragment_bytes",
                            "unmap_bytes_max", "read_only", "can_discard", "sequence", NULL};
    PyObject *channel, *data;
    unsigned long long first_pfn, blocks, sequence;
    unsigned int block_bytes, max_fragment_bytes, unmap_bytes_max;
    int read_only, can_discard;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OOKIKIIppK", names, &channel, &data, &first_pfn, &block_bytes, &blocks,
                                     &max_fragment_bytes, &unmap_bytes_max, &read_only, &can_discard, &sequence))
        return NULL;
    allocfunc alloc = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
    struct nbd_object *self = (struct nbd_object *)alloc(type, 0);
    if (!self)
        return NULL;
    self->ended = PyList_New(0);
    self->failed = PyList_New(0);
    struct nbd_engine *engine = PyMem_Calloc(1, sizeof *engine);
    if (!self->ended || !self->failed || !engine || PyObject_GetBuffer(data, &self->data, PyBUF_WRITABLE) < 0) {
        PyMem_Free(engine);
        Py_DECREF(self);
        return PyErr_Occurred() ? NULL : PyErr_NoMemory();
    }
    engine->disk = (struct nbd_export){.block_bytes = block_bytes,
                                       .read_only = read_only != 0,
                                       .can_discard = can_discard != 0};
    engine->max_fragment_bytes = max_fragment_bytes;
    engine->unmap_bytes_max = unmap_bytes_max;
    engine->queue.sequence = sequence;
    if (!is_sound(engine, self->data.len, blocks)) {
        PyMem_Free(engine);
        Py_DECREF(self);
        PyErr_Format(PyExc_ValueError, "want blocks of a power of two from 512, fragments of whole pages, and at least %u pages",
                     NBD_POOL_PAGES_MIN);
        return NULL;
    }
    engine->disk.size_bytes = blocks * block_bytes;
    self->engine = engine;
    const int error = nbd_engine_open(engine, self->data.buf, (uint32_t)(self->data.len / RING_PAGE_BYTES), first_pfn);
    if (error) {
        Py_DECREF(self);
        errno = error;
        return PyErr_SetFromErrno(PyExc_OSError);
    }
    Py_INCREF(channel);
    self->channel = channel;
    return (PyObject *)self;
}

/* What happened, into the lists. False: an exception is set. */
static bool collect(struct nbd_object *self)
{
    struct nbd_engine *engine = self->engine;
    bool good = true;
    for (uint32_t i = 0; good && i < engine->ended_count; i++)
        good = result_list_add(self->ended,
                               Py_BuildValue("(Ii)", (unsigned)engine->ended[i],
                                             (int)engine->connection[engine->ended[i]].ending));
    for (uint32_t i = 0; good && i < engine->failed_count; i++)
        good = result_list_add(self->failed, Py_BuildValue("(Iy#)", (unsigned)engine->failed[i].fragment,
                                                           (const char *)&engine->failed[i].packet,
                                                           (Py_ssize_t)sizeof engine->failed[i].packet));
    engine->ended_count = engine->failed_count = 0;
    return good;
}

static PyObject *nbd_run(PyObject *object, PyObject *argument)
{
    struct nbd_object *self = (struct nbd_object *)object;
    const struct core_api *core = state_of(Py_TYPE(object))->core;
    const long long timeout_ns = PyLong_AsLongLong(argument);
    if (timeout_ns == -1 && PyErr_Occurred())
        return NULL;
    struct endpoint *endpoint = core->channel_enter(self->channel);
    if (!endpoint)
        return NULL;
    enum nbd_result result = NBD_FOR_PYTHON;
    int error = 0;
    self->engine->queue.endpoint = endpoint;
    if (!self->is_watching) {
        error = nbd_engine_watch_channel(self->engine, endpoint);
        self->is_watching = error == 0;
    }
    if (error == 0) {
        const uint64_t deadline_ns = deadline_of(timeout_ns);
        Py_BEGIN_ALLOW_THREADS
        result = nbd_engine_run(self->engine, deadline_ns);
        Py_END_ALLOW_THREADS
    }
    if (core->channel_leave(self->channel, result == NBD_CORRUPT) < 0)
        return NULL; /* RingClosed, RingCorrupt */
    if (error) {
        errno = error;
        return PyErr_SetFromErrno(PyExc_OSError);
    }
    if (!collect(self) || (result == NBD_INTERRUPTED && PyErr_CheckSignals() < 0))
        return NULL;
    return PyBool_FromLong(result == NBD_FOR_PYTHON);
}

static PyObject *nbd_attach(PyObject *object, PyObject *argument)
{
    struct nbd_object *self = (struct nbd_object *)object;
    const long given = PyLong_AsLong(argument);
    if (given == -1 && PyErr_Occurred())
        return NULL;
    const int fd = fcntl((int)given, F_DUPFD_CLOEXEC, 0);
    if (fd < 0)
        return PyErr_SetFromErrno(PyExc_OSError);
    const int number = nbd_engine_attach(self->engine, fd);
    if (number < 0)
        close(fd);
    return PyLong_FromLong(number);
}

static PyObject *nbd_leave(PyObject *object, PyObject *unused)
{
    struct nbd_object *self = (struct nbd_object *)object;
    nbd_engine_leave(self->engine);
    if (!collect(self))
        return NULL;
    Py_RETURN_NONE;
}

static PyObject *nbd_wake(PyObject *object, PyObject *unused)
{
    nbd_engine_wake(((struct nbd_object *)object)->engine);
    Py_RETURN_NONE;
}

static PyObject *nbd_settle(PyObject *object, PyObject *args)
{
    unsigned int fragment, error;
    if (!PyArg_ParseTuple(args, "II", &fragment, &error))
        return NULL;
    nbd_engine_settle(((struct nbd_object *)object)->engine, fragment, error ? error : NBD_EIO);
    Py_RETURN_NONE;
}

static PyObject *nbd_take_ended(PyObject *object, PyObject *unused)
{
    return result_list_take(&((struct nbd_object *)object)->ended);
}

static PyObject *nbd_take_failed(PyObject *object, PyObject *unused)
{
    return result_list_take(&((struct nbd_object *)object)->failed);
}

static PyObject *nbd_statistics(PyObject *object, PyObject *unused)
{
    const struct nbd_engine *engine = ((struct nbd_object *)object)->engine;
    const struct nbd_engine_statistics *is = &engine->statistics;
    return Py_BuildValue("{sKsKsKsKsKsKsKsKsIsI}", "requests", is->requests, "refused", is->refused, "bytes_read",
                         is->bytes_read, "bytes_written", is->bytes_written, "receives", is->receives, "sends", is->sends,
                         "sleeps", is->sleeps, "foreign", is->foreign, "connections", engine->open_connections, "in_flight",
                         engine->queue.in_flight);
}

static PyObject *nbd_get_sequence(PyObject *object, void *unused)
{
    return PyLong_FromUnsignedLongLong(((struct nbd_object *)object)->engine->queue.sequence);
}

static PyObject *nbd_get_max_payload(PyObject *object, void *unused)
{
    return PyLong_FromUnsignedLong(((struct nbd_object *)object)->engine->disk.max_payload_bytes);
}

static PyMethodDef nbd_methods[] = {
    {"attach", nbd_attach, METH_O, NULL},
    {"run", nbd_run, METH_O, NULL},
    {"leave", nbd_leave, METH_NOARGS, NULL},
    {"wake", nbd_wake, METH_NOARGS, NULL},
    {"settle", nbd_settle, METH_VARARGS, NULL},
    {"take_ended", nbd_take_ended, METH_NOARGS, NULL},
    {"take_failed", nbd_take_failed, METH_NOARGS, NULL},
    {"statistics", nbd_statistics, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef nbd_properties[] = {
    {"sequence", nbd_get_sequence, NULL, NULL, NULL},
    {"max_payload_bytes", nbd_get_max_payload, NULL, NULL, NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot nbd_slots[] = {
    {Py_tp_new, nbd_new},
    {Py_tp_dealloc, nbd_dealloc},
    {Py_tp_methods, nbd_methods},
    {Py_tp_getset, nbd_properties},
    {0, NULL},
};

PyType_Spec nbd_spec = {
    .name = "partitions.storage._blockio.NbdEngine",
    .basicsize = sizeof(struct nbd_object),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = nbd_slots,
};
