/* The type Trace: one process's trace memory, kept mapped as long as anything may stamp into it. */
#include "trace_type.h"

#include "clock.h"
#include "trace.h"

#define TIMED_STAMPS_MAX 10000000u

struct trace_object {
    PyObject_HEAD
    struct trace trace;
    Py_buffer memory; /* obj is NULL when not held */
};

const struct trace *trace_of(const struct module_state *state, PyObject *object)
{
    if (Py_TYPE(object) != state->trace_type) {
        PyErr_SetString(PyExc_TypeError, "trace must be a Trace or None");
        return NULL;
    }
    return &((struct trace_object *)object)->trace;
}

static PyObject *trace_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"memory", NULL};
    PyObject *memory;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O:Trace", names, &memory))
        return NULL;
    struct trace_object *self = new_instance(type);
    if (!self)
        return NULL;
    if (writable_page_open(&self->memory, memory, TRACE_PAGE_BYTES, "memory") < 0) {
        Py_DECREF((PyObject *)self);
        return NULL;
    }
    if (trace_attach(&self->trace, self->memory.buf, (size_t)self->memory.len) < 0) {
        PyErr_SetString(PyExc_ValueError, "memory: not that of a trace");
        Py_DECREF((PyObject *)self);
        return NULL;
    }
    return (PyObject *)self;
}

static void trace_dealloc(struct trace_object *self)
{
    if (self->memory.obj)
        PyBuffer_Release(&self->memory);
    free_instance((PyObject *)self);
}

static PyObject *stamp(struct trace_object *self, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames)
{
    static const char *const names[] = {"hop", "channel", "transaction_id"};
    PyObject *values[3];
    uint32_t hop;
    uint64_t channel, transaction_id;
    if (parse_arguments("stamp", names, 3, 2, args, nargs, kwnames, values) < 0 || to_u32(values[0], 0, &hop) < 0
        || to_u64(values[1], 0, &channel) < 0 || to_u64(values[2], 0, &transaction_id) < 0)
        return NULL;
    if (hop == 0 || hop >= TRACE_HOPS)
        return PyErr_Format(PyExc_ValueError, "hop: %u is none", (unsigned)hop);
    trace_write(&self->trace, channel, (enum trace_hop)hop, transaction_id);
    Py_RETURN_NONE;
}

static PyObject *name(struct trace_object *self, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames)
{
    static const char *const names[] = {"channel", "port", "text"};
    PyObject *values[3];
    uint64_t channel, port;
    if (parse_arguments("name", names, 3, 3, args, nargs, kwnames, values) < 0 || to_u64(values[0], 0, &channel) < 0
        || to_u64(values[1], 0, &port) < 0)
        return NULL;
    PyObject *bytes = PyUnicode_AsUTF8String(values[2]);
    if (!bytes)
        return NULL;
    const int done = trace_name_channel(&self->trace, channel, port, PyBytes_AsString(bytes));
    Py_DECREF(bytes);
    return PyBool_FromLong(done == 0);
}

/* What a stamp costs here and now. They go the way of all stamps, and push others out. */
static PyObject *time_stamps(struct trace_object *self, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames)
{
    static const char *const names[] = {"count"};
    PyObject *values[1];
    uint32_t count;
    if (parse_arguments("time_stamps", names, 1, 1, args, nargs, kwnames, values) < 0 || to_u32(values[0], 0, &count) < 0)
        return NULL;
    if (count == 0 || count > TIMED_STAMPS_MAX)
        return PyErr_Format(PyExc_ValueError, "count: 1 to %u expected", TIMED_STAMPS_MAX);
    const struct trace *volatile trace = &self->trace; /* as a channel has it: looked up each time */
    const uint64_t begin = clock_now_ns();
    for (uint32_t i = 0; i < count; i++)
        trace_stamp(trace, 0, TRACE_CALL, i);
    return PyFloat_FromDouble((double)(clock_now_ns() - begin) / count);
}

static PyObject *get_enabled(struct trace_object *self, void *unused)
{
    return PyBool_FromLong(atomic_load(&self->trace.header->enabled));
}

#define FAST (METH_FASTCALL | METH_KEYWORDS)
#define METHOD(name, function) {name, (PyCFunction)(void (*)(void))(function), FAST, NULL}

static PyMethodDef trace_methods[] = {
    METHOD("stamp", stamp),
    METHOD("name", name),
    METHOD("time_stamps", time_stamps),
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef trace_properties[] = {
    {"enabled", (getter)get_enabled, NULL, "Whether stamps are kept.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot trace_slots[] = {
    {Py_tp_doc, "One process's trace memory: where its threads stamp the hops of requests."},
    {Py_tp_new, trace_new},
    {Py_tp_dealloc, trace_dealloc},
    {Py_tp_methods, trace_methods},
    {Py_tp_getset, trace_properties},
    {0, NULL},
};

PyType_Spec trace_spec = {
    .name = "bus.native.Trace",
    .basicsize = sizeof(struct trace_object),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = trace_slots,
};
