#include "module.h"

#include <string.h>

int parse_all_arguments(const char *function, const char *const *names, Py_ssize_t count, Py_ssize_t required,
                        PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames, PyObject **values)
{
    if (nargs > count) {
        PyErr_Format(PyExc_TypeError, "%s() takes at most %zd arguments (%zd given)", function, count, nargs);
        return -1;
    }
    for (Py_ssize_t i = 0; i < count; i++)
        values[i] = i < nargs ? args[i] : NULL;
    const Py_ssize_t named = kwnames ? PyTuple_Size(kwnames) : 0;
    for (Py_ssize_t k = 0; k < named; k++) {
        PyObject *name = PyTuple_GetItem(kwnames, k);
        Py_ssize_t i = 0;
        while (i < count && PyUnicode_CompareWithASCIIString(name, names[i]) != 0)
            i++;
        if (i == count || values[i]) {
            PyErr_Format(PyExc_TypeError, i == count ? "%s() got an unexpected keyword argument '%U'"
                                                     : "%s() got multiple values for argument '%U'", function, name);
            return -1;
        }
        values[i] = args[nargs + k];
    }
    for (Py_ssize_t i = 0; i < required; i++) {
        if (!values[i]) {
            PyErr_Format(PyExc_TypeError, "%s() is missing the argument '%s'", function, names[i]);
            return -1;
        }
    }
    return 0;
}

int readable_open_buffer(struct readable *readable, PyObject *object)
{
    if (PyObject_GetBuffer(object, &readable->buffer, PyBUF_SIMPLE) < 0)
        return -1;
    readable->bytes = readable->buffer.buf;
    readable->length = readable->buffer.len;
    readable->exported = true;
    return 0;
}

int writable_page_open(Py_buffer *buffer, PyObject *object, Py_ssize_t bytes, const char *what)
{
    if (PyObject_GetBuffer(object, buffer, PyBUF_WRITABLE) < 0)
        return -1;
    if (buffer->len < bytes || (uintptr_t)buffer->buf % 8 != 0) {
        PyErr_Format(PyExc_ValueError, "%s: %zd bytes, 8-aligned, expected (%zd given)", what, bytes, buffer->len);
        PyBuffer_Release(buffer);
        return -1;
    }
    return 0;
}

int number_to_u64(PyObject *object, uint64_t *value)
{
    *value = PyLong_AsUnsignedLongLong(object);
    return *value == UINT64_MAX && PyErr_Occurred() ? -1 : 0;
}

int number_to_i64(PyObject *object, int64_t *value)
{
    *value = PyLong_AsLongLong(object);
    return *value == -1 && PyErr_Occurred() ? -1 : 0;
}

int to_u32(PyObject *object, uint32_t otherwise, uint32_t *value)
{
    uint64_t wide;
    if (to_u64(object, otherwise, &wide) < 0)
        return -1;
    if (wide > UINT32_MAX) {
        PyErr_SetString(PyExc_OverflowError, "does not fit into 32 bits");
        return -1;
    }
    *value = (uint32_t)wide;
    return 0;
}

PyObject *dict_of_u64s(const char *const *names, const uint64_t *values)
{
    PyObject *dict = PyDict_New();
    for (size_t i = 0; dict && names[i]; i++) {
        PyObject *number = PyLong_FromUnsignedLongLong(values[i]);
        if (!number || PyDict_SetItemString(dict, names[i], number) < 0)
            Py_CLEAR(dict);
        Py_XDECREF(number);
    }
    return dict;
}
