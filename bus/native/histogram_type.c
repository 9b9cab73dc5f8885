/* The type Histogram. */
#include "histogram.h"
#include "module.h"

#include <string.h>

struct histogram_object {
    PyObject_HEAD
    struct histogram histogram;
};

static PyObject *histogram_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {NULL};
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, ":Histogram", names))
        return NULL;
    return new_instance(type);
}

static void histogram_dealloc(PyObject *object)
{
    free_instance(object);
}

static PyObject *record(struct histogram_object *self, PyObject *value)
{
    uint64_t number;
    if (to_u64(value, 0, &number) < 0)
        return NULL;
    histogram_record(&self->histogram, number);
    Py_RETURN_NONE;
}

static PyObject *record_many(struct histogram_object *self, PyObject *values)
{
    struct readable readable;
    if (readable_open(&readable, values) < 0)
        return NULL;
    const bool whole = readable.length % 8 == 0;
    for (Py_ssize_t at = 0; whole && at < readable.length; at += 8) {
        uint64_t number;
        memcpy(&number, (const char *)readable.bytes + at, 8);
        histogram_record(&self->histogram, number);
    }
    readable_close(&readable);
    if (!whole)
        return PyErr_Format(PyExc_ValueError, "values must be u64s, 8 bytes each");
    Py_RETURN_NONE;
}

static PyObject *percentile(struct histogram_object *self, PyObject *percent)
{
    const double wanted = PyFloat_AsDouble(percent);
    if (wanted == -1.0 && PyErr_Occurred())
        return NULL;
    if (!(wanted >= 0.0 && wanted <= 100.0))
        return PyErr_Format(PyExc_ValueError, "percent must be from 0 to 100");
    return PyLong_FromUnsignedLongLong(histogram_percentile(&self->histogram, wanted));
}

static PyObject *merge(struct histogram_object *self, PyObject *other)
{
    if (Py_TYPE(other) != Py_TYPE((PyObject *)self))
        return PyErr_Format(PyExc_TypeError, "a Histogram expected");
    histogram_merge(&self->histogram, &((struct histogram_object *)other)->histogram);
    Py_RETURN_NONE;
}

static PyObject *buckets_of(struct histogram_object *self, void *unused)
{
    PyObject *list = PyList_New(0);
    for (uint32_t bucket = 0; list != NULL && bucket < HISTOGRAM_BUCKETS; bucket++) {
        const uint64_t count = self->histogram.buckets[bucket];
        if (count == 0)
            continue;
        PyObject *pair = Py_BuildValue("(KK)", (unsigned long long)histogram_top_of(bucket), (unsigned long long)count);
        if (pair == NULL || PyList_Append(list, pair) < 0)
            Py_CLEAR(list);
        Py_XDECREF(pair);
    }
    return list;
}

static PyObject *pack(struct histogram_object *self, PyObject *unused)
{
    uint8_t *bytes = PyMem_Malloc(HISTOGRAM_PACKED_BYTES_MAX);
    if (bytes == NULL)
        return PyErr_NoMemory();
    const size_t length = histogram_pack(&self->histogram, bytes);
    PyObject *packed = PyBytes_FromStringAndSize((const char *)bytes, (Py_ssize_t)length);
    PyMem_Free(bytes);
    return packed;
}

static PyObject *unpack(PyTypeObject *type, PyObject *packed)
{
    struct readable readable;
    if (readable_open(&readable, packed) < 0)
        return NULL;
    PyObject *made = new_instance(type);
    const char *wrong = NULL;
    if (made != NULL)
        wrong = histogram_unpack(
            &((struct histogram_object *)made)->histogram, (const uint8_t *)readable.bytes, (size_t)readable.length);
    readable_close(&readable);
    if (wrong != NULL) {
        Py_CLEAR(made);
        PyErr_SetString(PyExc_ValueError, wrong);
    }
    return made;
}

static PyObject *compare(PyObject *self, PyObject *other, int operation)
{
    if (Py_TYPE(self) != Py_TYPE(other) || (operation != Py_EQ && operation != Py_NE))
        Py_RETURN_NOTIMPLEMENTED;
    const struct histogram *ours = &((struct histogram_object *)self)->histogram;
    const struct histogram *theirs = &((struct histogram_object *)other)->histogram;
    return PyBool_FromLong((memcmp(ours, theirs, sizeof(*ours)) == 0) == (operation == Py_EQ));
}

static PyObject *count_of(struct histogram_object *self, void *unused)
{
    return PyLong_FromUnsignedLongLong(self->histogram.count);
}

static PyObject *minimum_of(struct histogram_object *self, void *unused)
{
    return PyLong_FromUnsignedLongLong(self->histogram.minimum);
}

static PyObject *maximum_of(struct histogram_object *self, void *unused)
{
    return PyLong_FromUnsignedLongLong(self->histogram.maximum);
}

static PyMethodDef histogram_methods[] = {
    {"record", (PyCFunction)record, METH_O, NULL},
    {"record_many", (PyCFunction)record_many, METH_O, NULL},
    {"percentile", (PyCFunction)percentile, METH_O, NULL},
    {"merge", (PyCFunction)merge, METH_O, NULL},
    {"pack", (PyCFunction)pack, METH_NOARGS, NULL},
    {"unpack", (PyCFunction)unpack, METH_O | METH_CLASS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef histogram_properties[] = {
    {"count", (getter)count_of, NULL, "Values recorded.", NULL},
    {"minimum", (getter)minimum_of, NULL, "The smallest value, exactly; 0 when there are none.", NULL},
    {"buckets", (getter)buckets_of, NULL, "(largest value of the bucket, count) of each that is occupied, upwards.", NULL},
    {"maximum", (getter)maximum_of, NULL, "The largest value, exactly; 0 when there are none.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot histogram_slots[] = {
    {Py_tp_doc, "Log-linear histogram of u64 values: 128 buckets an octave, mergeable."},
    {Py_tp_new, histogram_new},
    {Py_tp_dealloc, histogram_dealloc},
    {Py_tp_methods, histogram_methods},
    {Py_tp_getset, histogram_properties},
    {Py_tp_richcompare, compare},
    {Py_tp_hash, PyObject_HashNotImplemented}, /* equal by value, and mutable */
    {0, NULL},
};

PyType_Spec histogram_spec = {
    .name = "bus.native.Histogram",
    .basicsize = sizeof(struct histogram_object),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = histogram_slots,
};
