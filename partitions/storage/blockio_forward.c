/* The type Forward: block_forward.h for Python. */
#include "message_client.h"

#include "block_forward.h"

struct forward_object {
    PyObject_HEAD
    PyObject *calls, *recover;
    struct block_forward forward;
};

struct block_forward *block_forward_of(PyObject *object)
{
    return &((struct forward_object *)object)->forward;
}

/* In the thread of a Server that has dropped the GIL. What Python raises is for it to tell: here it is the end. */
static bool recover(void *context, bool broken)
{
    const PyGILState_STATE state = PyGILState_Ensure();
    const bool good = message_calls_recover(((struct forward_object *)context)->recover, broken);
    PyErr_Clear();
    PyGILState_Release(state);
    return good;
}

static PyObject *forward_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"calls", "recover", NULL};
    PyObject *calls, *recover_with;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O!O", names, state_of(type)->calls_type, &calls, &recover_with))
        return NULL;
    allocfunc alloc = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
    struct forward_object *self = (struct forward_object *)alloc(type, 0);
    if (!self)
        return NULL;
    Py_INCREF(calls);
    Py_INCREF(recover_with);
    self->calls = calls;
    self->recover = recover_with;
    self->forward.calls = message_calls_of(calls);
    self->forward.recover = recover;
    self->forward.context = self;
    return (PyObject *)self;
}

static void forward_dealloc(PyObject *object)
{
    struct forward_object *self = (struct forward_object *)object;
    PyTypeObject *type = Py_TYPE(object);
    Py_XDECREF(self->calls);
    Py_XDECREF(self->recover);
    freefunc free_object = (freefunc)PyType_GetSlot(type, Py_tp_free);
    free_object(object);
    Py_DECREF(type);
}

static PyType_Slot forward_slots[] = {
    {Py_tp_new, forward_new},
    {Py_tp_dealloc, forward_dealloc},
    {0, NULL},
};

PyType_Spec forward_spec = {
    .name = "partitions.storage._blockio.Forward",
    .basicsize = sizeof(struct forward_object),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = forward_slots,
};
