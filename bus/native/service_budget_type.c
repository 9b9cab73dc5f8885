/* The type ServiceBudget, and Channel.charge_to(), which has a channel's server keep to one. */
#include "service_budget_type.h"

#include "clock.h"

struct budget_object {
    PyObject_HEAD
    struct service_budget budget;
};

static PyObject *budget_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"share", NULL};
    unsigned share = 0;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "|I:ServiceBudget", names, &share))
        return NULL;
    struct budget_object *self = new_instance(type);
    if (!self)
        return NULL;
    service_budget_limit(&self->budget, share, clock_now_ns());
    return (PyObject *)self;
}

static void budget_dealloc(struct budget_object *self)
{
    free_instance((PyObject *)self);
}

/* The moment that a caller names, or this one. */
static int moment(PyObject *given, uint64_t *now_ns)
{
    return to_u64(given, given ? 0 : clock_now_ns(), now_ns);
}

static PyObject *budget_charge(struct budget_object *self, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames)
{
    static const char *const names[] = {"served_ns", "now_ns"};
    PyObject *values[2];
    uint64_t served_ns, now_ns;
    if (parse_arguments("charge", names, 2, 1, args, nargs, kwnames, values) < 0 || to_u64(values[0], 0, &served_ns) < 0
        || moment(values[1], &now_ns) < 0)
        return NULL;
    return PyLong_FromUnsignedLongLong(service_budget_charge(&self->budget, served_ns, now_ns));
}

static PyObject *budget_debt(struct budget_object *self, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames)
{
    static const char *const names[] = {"now_ns"};
    PyObject *values[1];
    uint64_t now_ns;
    if (parse_arguments("debt_ns", names, 1, 0, args, nargs, kwnames, values) < 0 || moment(values[0], &now_ns) < 0)
        return NULL;
    return PyLong_FromUnsignedLongLong(service_budget_debt(&self->budget, now_ns));
}

static PyObject *budget_limit(struct budget_object *self, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames)
{
    static const char *const names[] = {"share", "now_ns"};
    PyObject *values[2];
    uint32_t share;
    uint64_t now_ns;
    if (parse_arguments("limit", names, 2, 1, args, nargs, kwnames, values) < 0 || to_u32(values[0], 0, &share) < 0
        || moment(values[1], &now_ns) < 0)
        return NULL;
    service_budget_limit(&self->budget, share, now_ns);
    Py_RETURN_NONE;
}

static PyObject *budget_share(struct budget_object *self, void *unused)
{
    return PyLong_FromUnsignedLong(atomic_load(&self->budget.share));
}

static PyObject *budget_statistics(struct budget_object *self, PyObject *unused)
{
    static const char *const names[] = {"served_ns", "rested_ns", "rests", NULL};
    const uint64_t values[] = {atomic_load(&self->budget.served_ns), atomic_load(&self->budget.rested_ns),
                               atomic_load(&self->budget.rests)};
    return dict_of_u64s(names, values);
}

PyObject *channel_charge_to(struct channel *channel, PyObject *object)
{
    if (Py_TYPE(object) != channel->state->service_budget_type)
        return PyErr_Format(PyExc_TypeError, "a bus.native.ServiceBudget is wanted");
    if (channel_check(channel, WAIT_FOR_DATA) < 0)
        return NULL;
    PyObject *const before = channel->budget;
    Py_INCREF(object);
    channel->budget = object;
    channel->endpoint.served_by = 0;
    channel->endpoint.budget = &((struct budget_object *)object)->budget;
    Py_XDECREF(before);
    Py_RETURN_NONE;
}

int channel_pace(struct channel *channel)
{
    uint64_t rest_ns;
    bool raised = false;
    while (!raised && !channel->closed && (rest_ns = endpoint_charge(&channel->endpoint)) > 0) {
        const bool owes_signal = channel->owes_signal;
        channel->owes_signal = false;
        channel->waits[WAIT_FOR_DATA] = true;
        PyThreadState *thread = PyEval_SaveThread();
        if (owes_signal)
            endpoint_signal(&channel->endpoint);
        endpoint_rest(&channel->endpoint, rest_ns);
        PyEval_RestoreThread(thread);
        channel->waits[WAIT_FOR_DATA] = false;
        raised = PyErr_CheckSignals() < 0;
    }
    if (raised)
        return -1;
    return channel->closed ? channel_refuse(channel, WAIT_FOR_DATA) : 0;
}

static PyMethodDef budget_methods[] = {
    {"charge", (PyCFunction)(void (*)(void))budget_charge, METH_FASTCALL | METH_KEYWORDS, NULL},
    {"debt_ns", (PyCFunction)(void (*)(void))budget_debt, METH_FASTCALL | METH_KEYWORDS, NULL},
    {"limit", (PyCFunction)(void (*)(void))budget_limit, METH_FASTCALL | METH_KEYWORDS, NULL},
    {"statistics", (PyCFunction)budget_statistics, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef budget_properties[] = {
    {"share", (getter)budget_share, NULL, "Of 65536, a whole processor; 0: as much as it likes.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot budget_slots[] = {
    {Py_tp_doc, "What a server may spend on a client that has a cap."},
    {Py_tp_new, budget_new},
    {Py_tp_dealloc, budget_dealloc},
    {Py_tp_methods, budget_methods},
    {Py_tp_getset, budget_properties},
    {0, NULL},
};

PyType_Spec service_budget_spec = {
    .name = "bus.native.ServiceBudget",
    .basicsize = sizeof(struct budget_object),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = budget_slots,
};
