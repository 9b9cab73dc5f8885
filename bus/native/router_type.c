/* The type Router: a router whose SIEF pages are Python buffers, held while a route uses them. */
#include "router.h"
#include "module.h"
#include "synic.h"
#include "trace_type.h"

#include <errno.h>

struct router_object {
    PyObject_HEAD
    struct router *router; /* NULL: closed */
    PyObject *trace;       /* or NULL */
    PyObject *pages;       /* {route id: memoryview of its SIEF page} */
};

static PyObject *router_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {NULL};
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, ":Router", names))
        return NULL;
    struct router_object *self = new_instance(type);
    if (!self)
        return NULL;
    self->pages = PyDict_New();
    self->router = self->pages ? router_open() : NULL;
    if (!self->router) {
        if (self->pages)
            PyErr_SetFromErrno(PyExc_OSError);
        Py_DECREF((PyObject *)self);
        return NULL;
    }
    return (PyObject *)self;
}

static void stop(struct router_object *self)
{
    struct router *router = self->router;
    if (!router)
        return;
    self->router = NULL;
    PyThreadState *thread = PyEval_SaveThread();
    router_close(router);
    PyEval_RestoreThread(thread);
}

static void router_dealloc(struct router_object *self)
{
    stop(self);
    Py_XDECREF(self->pages); /* only now: the thread is gone */
    Py_XDECREF(self->trace);
    free_instance((PyObject *)self);
}

static int check_open(const struct router_object *self)
{
    if (self->router)
        return 0;
    PyErr_SetString(PyExc_ValueError, "the router is closed");
    return -1;
}

static PyObject *refuse(int error, uint64_t route_id)
{
    if (error == ENOENT)
        return PyErr_Format(PyExc_LookupError, "no route %llu", (unsigned long long)route_id);
    if (error == EEXIST)
        return PyErr_Format(PyExc_ValueError, "route %llu exists", (unsigned long long)route_id);
    errno = error;
    return PyErr_SetFromErrno(PyExc_OSError);
}

static int to_fd(PyObject *object, int *fd)
{
    const long value = PyLong_AsLong(object);
    if (value == -1 && PyErr_Occurred())
        return -1;
    if (value < 0 || value > INT32_MAX) {
        PyErr_SetString(PyExc_ValueError, "not a file descriptor");
        return -1;
    }
    *fd = (int)value;
    return 0;
}

static PyObject *router_trace_method(struct router_object *self, PyObject *object)
{
    const struct trace *trace = trace_of(state_of(Py_TYPE((PyObject *)self)), object);
    if (!trace || check_open(self) < 0)
        return NULL;
    if (self->trace)
        return PyErr_Format(PyExc_ValueError, "this router is traced already");
    Py_INCREF(object);
    self->trace = object;
    router_trace(self->router, trace);
    Py_RETURN_NONE;
}

static PyObject *router_add_method(struct router_object *self, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames)
{
    static const char *const names[] = {"route_id", "kick_fd", "sief_page", "flag", "doorbell_fd"};
    PyObject *values[5];
    uint64_t route_id;
    uint32_t flag;
    int kick_fd, doorbell_fd;
    Py_buffer page;
    if (parse_arguments("add", names, 5, 5, args, nargs, kwnames, values) < 0 || to_u64(values[0], 0, &route_id) < 0
        || to_fd(values[1], &kick_fd) < 0 || to_u32(values[3], 0, &flag) < 0 || to_fd(values[4], &doorbell_fd) < 0
        || check_open(self) < 0)
        return NULL;
    if (flag >= SYNIC_FLAGS)
        return PyErr_Format(PyExc_ValueError, "flag: %u is not a bit of a SIEF page", (unsigned)flag);
    if (writable_page_open(&page, values[2], SYNIC_PAGE_BYTES, "sief_page") < 0)
        return NULL;
    void *const memory = page.buf;
    /* A memoryview exports the memory just as `page` does, and can be kept in a dict. */
    PyObject *view = PyMemoryView_FromObject(values[2]);
    PyBuffer_Release(&page);
    PyObject *key = view ? PyLong_FromUnsignedLongLong(route_id) : NULL;
    PyObject *result = NULL;
    if (key && PyDict_Contains(self->pages, key) == 1)
        refuse(EEXIST, route_id);
    else if (key && PyDict_SetItem(self->pages, key, view) == 0) {
        const int error = router_add(self->router, route_id, kick_fd, memory, flag, doorbell_fd);
        if (error) {
            PyDict_DelItem(self->pages, key);
            refuse(error, route_id);
        } else {
            Py_INCREF(Py_None);
            result = Py_None;
        }
    }
    Py_XDECREF(key);
    Py_XDECREF(view);
    return result;
}

static PyObject *router_remove_method(struct router_object *self, PyObject *id)
{
    uint64_t route_id;
    if (to_u64(id, 0, &route_id) < 0 || check_open(self) < 0)
        return NULL;
    const int error = router_remove(self->router, route_id);
    if (error)
        return refuse(error, route_id);
    PyObject *key = PyLong_FromUnsignedLongLong(route_id);
    const int deleted = key ? PyDict_DelItem(self->pages, key) : -1;
    Py_XDECREF(key);
    if (deleted < 0)
        return NULL;
    Py_RETURN_NONE;
}

static PyObject *router_move_method(struct router_object *self, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames)
{
    static const char *const names[] = {"route_id", "sief_page", "flag"};
    PyObject *values[3];
    uint64_t route_id;
    uint32_t flag;
    Py_buffer page;
    if (parse_arguments("move", names, 3, 3, args, nargs, kwnames, values) < 0 || to_u64(values[0], 0, &route_id) < 0
        || to_u32(values[2], 0, &flag) < 0 || check_open(self) < 0)
        return NULL;
    if (flag >= SYNIC_FLAGS)
        return PyErr_Format(PyExc_ValueError, "flag: %u is not a bit of a SIEF page", (unsigned)flag);
    if (writable_page_open(&page, values[1], SYNIC_PAGE_BYTES, "sief_page") < 0)
        return NULL;
    void *const memory = page.buf;
    PyObject *view = PyMemoryView_FromObject(values[1]);
    PyBuffer_Release(&page);
    PyObject *key = view ? PyLong_FromUnsignedLongLong(route_id) : NULL;
    PyObject *before = key ? PyDict_GetItemWithError(self->pages, key) : NULL;
    PyObject *result = NULL;
    if (key && !before && !PyErr_Occurred()) {
        refuse(ENOENT, route_id);
    } else if (before) {
        Py_INCREF(before); /* until the thread is off its page */
        if (PyDict_SetItem(self->pages, key, view) == 0) {
            router_move(self->router, route_id, memory, flag);
            Py_INCREF(Py_None);
            result = Py_None;
        }
        Py_DECREF(before);
    }
    Py_XDECREF(key);
    Py_XDECREF(view);
    return result;
}

static PyObject *router_quiet_method(struct router_object *self, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames)
{
    static const char *const names[] = {"route_id", "quiet"};
    PyObject *values[2];
    uint64_t route_id;
    if (parse_arguments("quiet", names, 2, 2, args, nargs, kwnames, values) < 0 || to_u64(values[0], 0, &route_id) < 0
        || check_open(self) < 0)
        return NULL;
    const int quiet = PyObject_IsTrue(values[1]);
    if (quiet < 0)
        return NULL;
    const int error = router_quiet(self->router, route_id, quiet);
    if (error)
        return refuse(error, route_id);
    Py_RETURN_NONE;
}

static PyObject *router_ring_at_method(struct router_object *self, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames)
{
    static const char *const names[] = {"route_id", "doorbell_fd"};
    PyObject *values[2];
    uint64_t route_id;
    int doorbell_fd;
    if (parse_arguments("ring_at", names, 2, 2, args, nargs, kwnames, values) < 0 || to_u64(values[0], 0, &route_id) < 0
        || to_fd(values[1], &doorbell_fd) < 0 || check_open(self) < 0)
        return NULL;
    const int error = router_ring_at(self->router, route_id, doorbell_fd);
    if (error)
        return refuse(error, route_id);
    Py_RETURN_NONE;
}

static PyObject *router_statistics_method(struct router_object *self, PyObject *id)
{
    static const char *const names[] = {"sent", "merged", "suppressed", "delivered", "blocked", NULL};
    uint64_t route_id;
    struct router_statistics counted;
    if (to_u64(id, 0, &route_id) < 0 || check_open(self) < 0)
        return NULL;
    const int error = router_statistics_of(self->router, route_id, &counted);
    if (error)
        return refuse(error, route_id);
    const uint64_t values[] = {counted.sent, counted.merged, counted.suppressed, counted.delivered, counted.blocked};
    return dict_of_u64s(names, values);
}

static PyObject *router_close_method(struct router_object *self, PyObject *unused)
{
    stop(self);
    PyDict_Clear(self->pages);
    Py_RETURN_NONE;
}

static PyMethodDef router_methods[] = {
    {"add", (PyCFunction)(void (*)(void))router_add_method, METH_FASTCALL | METH_KEYWORDS, NULL},
    {"remove", (PyCFunction)router_remove_method, METH_O, NULL},
    {"move", (PyCFunction)(void (*)(void))router_move_method, METH_FASTCALL | METH_KEYWORDS, NULL},
    {"trace", (PyCFunction)router_trace_method, METH_O, NULL},
    {"quiet", (PyCFunction)(void (*)(void))router_quiet_method, METH_FASTCALL | METH_KEYWORDS, NULL},
    {"ring_at", (PyCFunction)(void (*)(void))router_ring_at_method, METH_FASTCALL | METH_KEYWORDS, NULL},
    {"statistics", (PyCFunction)router_statistics_method, METH_O, NULL},
    {"close", (PyCFunction)router_close_method, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot router_slots[] = {
    {Py_tp_doc, "The interrupt router: one native thread, no GIL. Kick eventfd -> flag in a SIEF page -> doorbell."},
    {Py_tp_new, router_new},
    {Py_tp_dealloc, router_dealloc},
    {Py_tp_methods, router_methods},
    {0, NULL},
};

PyType_Spec router_spec = {
    .name = "bus.native.Router",
    .basicsize = sizeof(struct router_object),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = router_slots,
};
