/* What the Python side of the core shares: module state, argument parsing, buffers. */
#ifndef PARTVISOR_MODULE_H
#define PARTVISOR_MODULE_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdbool.h>
#include <stdint.h>

#include "doorbell.h"

struct module_state {
    PyObject *ring_error, *ring_full, *ring_corrupt, *ring_closed;
    PyTypeObject *waiting_type, *histogram_type, *trace_type, *service_budget_type;
    struct doorbell_ringer ringer; /* used under the GIL; opened by the first ring: see eventfd_signal() */
    bool ringer_opened;
};

extern PyType_Spec channel_spec, fast_intercepts_spec, gpa_map_spec, histogram_spec, router_spec, timer_spec, trace_spec, waiting_spec;
extern PyType_Spec service_budget_spec;

/* The state of the module that an object's type belongs to. The types are final, so this is always the right one. */
static inline struct module_state *state_of(PyTypeObject *type)
{
    return PyType_GetModuleState(type);
}

/* Allocate an instance of a heap type, zeroed; free one, and let go of its type. */
static inline void *new_instance(PyTypeObject *type)
{
    allocfunc alloc = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
    return alloc(type, 0);
}

static inline void free_instance(PyObject *object)
{
    PyTypeObject *type = Py_TYPE(object);
    freefunc free_object = (freefunc)PyType_GetSlot(type, Py_tp_free);
    free_object(object);
    Py_DECREF((PyObject *)type);
}

/* A vectorcall's arguments into `values`, by position or by name; those not given stay NULL. -1 with TypeError set. */
int parse_all_arguments(const char *function, const char *const *names, Py_ssize_t count, Py_ssize_t required,
                    PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames, PyObject **values);

/* By position, which is how hot calls pass them, it is worth inlining. */
static inline int parse_arguments(const char *function, const char *const *names, Py_ssize_t count, Py_ssize_t required,
                                  PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames, PyObject **values)
{
    if (__builtin_expect(kwnames != NULL || nargs < required || nargs > count, 0))
        return parse_all_arguments(function, names, count, required, args, nargs, kwnames, values);
    for (Py_ssize_t i = 0; i < count; i++)
        values[i] = i < nargs ? args[i] : NULL;
    return 0;
}

/* The bytes of a readable argument. Borrowed from a bytes object, which cannot change; otherwise an exported buffer. */
struct readable {
    const void *bytes;
    Py_ssize_t length;
    bool exported;
    Py_buffer buffer;
};

int readable_open_buffer(struct readable *readable, PyObject *object);

static inline int readable_open(struct readable *readable, PyObject *object)
{
    if (!PyBytes_CheckExact(object))
        return readable_open_buffer(readable, object);
    readable->bytes = PyBytes_AsString(object);
    readable->length = PyBytes_Size(object);
    readable->exported = false;
    return 0;
}

/* The same for a use that ends before other Python code runs and before the GIL is dropped: a bytearray, which could be
 * resized then, need not be locked against it. */
static inline int readable_open_briefly(struct readable *readable, PyObject *object)
{
    if (!PyByteArray_CheckExact(object))
        return readable_open(readable, object);
    readable->bytes = PyByteArray_AsString(object);
    readable->length = PyByteArray_Size(object);
    readable->exported = false;
    return 0;
}

static inline void readable_close(struct readable *readable)
{
    if (readable->exported)
        PyBuffer_Release(&readable->buffer);
}

/* A writable page for atomics: at least `bytes` long, 8-aligned. -1 with ValueError or BufferError set. */
int writable_page_open(Py_buffer *buffer, PyObject *object, Py_ssize_t bytes, const char *what);

int number_to_u64(PyObject *object, uint64_t *value);
int number_to_i64(PyObject *object, int64_t *value);

/* An integer argument; a missing one is `otherwise`. -1 with an exception set. */
static inline int to_u64(PyObject *object, uint64_t otherwise, uint64_t *value)
{
    *value = otherwise;
    return object ? number_to_u64(object, value) : 0;
}

static inline int to_i64(PyObject *object, int64_t otherwise, int64_t *value)
{
    *value = otherwise;
    return object ? number_to_i64(object, value) : 0;
}

int to_u32(PyObject *object, uint32_t otherwise, uint32_t *value);

/* {"name": number, ...}; names end with NULL. */
PyObject *dict_of_u64s(const char *const *names, const uint64_t *values);

#endif
