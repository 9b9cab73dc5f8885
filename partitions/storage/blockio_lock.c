/* The type DeviceLock: device_lock.h for Python. A context manager; waiting drops the GIL. */
#include "blockio.h"

#include "device_lock.h"

struct lock_object {
    PyObject_HEAD
    struct device_lock lock;
};

struct device_lock *device_lock_of(PyObject *object)
{
    return &((struct lock_object *)object)->lock;
}

static PyObject *lock_enter(PyObject *self, PyObject *unused)
{
    Py_BEGIN_ALLOW_THREADS
    device_lock_acquire(device_lock_of(self));
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

static PyObject *lock_exit(PyObject *self, PyObject *unused)
{
    device_lock_release(device_lock_of(self));
    Py_RETURN_NONE;
}

static void lock_dealloc(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    freefunc free_object = (freefunc)PyType_GetSlot(type, Py_tp_free);
    free_object(self);
    Py_DECREF(type);
}

static PyMethodDef lock_methods[] = {
    {"__enter__", lock_enter, METH_NOARGS, NULL},
    {"__exit__", lock_exit, METH_VARARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot lock_slots[] = {
    {Py_tp_dealloc, lock_dealloc},
    {Py_tp_methods, lock_methods},
    {0, NULL},
};

PyType_Spec lock_spec = {
    .name = "partitions.storage._blockio.DeviceLock",
    .basicsize = sizeof(struct lock_object),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = lock_slots,
};
