/* The type Timer: one timerfd on CLOCK_MONOTONIC, for event loops that need better than epoll's milliseconds. */
#include "module.h"

#include <errno.h>
#include <sys/timerfd.h>
#include <unistd.h>

#define NS_PER_S 1000000000u

struct timer_object {
    PyObject_HEAD
    int fd; /* -1: closed */
};

static PyObject *timer_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {NULL};
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, ":Timer", names))
        return NULL;
    struct timer_object *self = new_instance(type);
    if (!self)
        return NULL;
    self->fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
    if (self->fd < 0) {
        PyErr_SetFromErrno(PyExc_OSError);
        Py_DECREF((PyObject *)self);
        return NULL;
    }
    return (PyObject *)self;
}

static void timer_dealloc(struct timer_object *self)
{
    if (self->fd >= 0)
        close(self->fd);
    free_instance((PyObject *)self);
}

static int check_open(const struct timer_object *self)
{
    if (self->fd >= 0)
        return 0;
    PyErr_SetString(PyExc_ValueError, "the timer is closed");
    return -1;
}

static PyObject *timer_set(struct timer_object *self, uint64_t at_ns)
{
    const struct itimerspec when = {.it_value = {.tv_sec = (time_t)(at_ns / NS_PER_S), .tv_nsec = (long)(at_ns % NS_PER_S)}};
    if (check_open(self) < 0)
        return NULL;
    if (timerfd_settime(self->fd, TFD_TIMER_ABSTIME, &when, NULL) < 0)
        return PyErr_SetFromErrno(PyExc_OSError);
    Py_RETURN_NONE;
}

static PyObject *timer_arm(struct timer_object *self, PyObject *at)
{
    uint64_t at_ns;
    if (to_u64(at, 0, &at_ns) < 0)
        return NULL;
    return timer_set(self, at_ns ? at_ns : 1); /* 0 would disarm; 1 ns after boot is as long ago */
}

static PyObject *timer_disarm(struct timer_object *self, PyObject *unused)
{
    return timer_set(self, 0);
}

static PyObject *timer_take(struct timer_object *self, PyObject *unused)
{
    uint64_t expirations;
    if (check_open(self) < 0)
        return NULL;
    const ssize_t got = read(self->fd, &expirations, sizeof expirations);
    if (got < 0 && errno != EAGAIN && errno != EINTR)
        return PyErr_SetFromErrno(PyExc_OSError);
    return PyBool_FromLong(got == sizeof expirations);
}

static PyObject *timer_fileno(struct timer_object *self, PyObject *unused)
{
    return check_open(self) < 0 ? NULL : PyLong_FromLong(self->fd);
}

static PyObject *timer_close(struct timer_object *self, PyObject *unused)
{
    if (self->fd >= 0)
        close(self->fd);
    self->fd = -1;
    Py_RETURN_NONE;
}

static PyMethodDef timer_methods[] = {
    {"arm", (PyCFunction)timer_arm, METH_O, NULL},
    {"disarm", (PyCFunction)timer_disarm, METH_NOARGS, NULL},
    {"take", (PyCFunction)timer_take, METH_NOARGS, NULL},
    {"fileno", (PyCFunction)timer_fileno, METH_NOARGS, NULL},
    {"close", (PyCFunction)timer_close, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot timer_slots[] = {
    {Py_tp_doc, "A timerfd on CLOCK_MONOTONIC: readable from the moment that it was armed for."},
    {Py_tp_new, timer_new},
    {Py_tp_dealloc, timer_dealloc},
    {Py_tp_methods, timer_methods},
    {0, NULL},
};

PyType_Spec timer_spec = {
    .name = "bus.native.Timer",
    .basicsize = sizeof(struct timer_object),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = timer_slots,
};
