/* The type Waiting: how a side waits, as the configuration says it. */
#include "waiting.h"

static const char *const mode_names[] = {[WAIT_ADAPTIVE] = "adaptive", [WAIT_SPIN] = "spin", [WAIT_BLOCK] = "block"};
#define MODES (sizeof mode_names / sizeof *mode_names)

static const struct wait_policy default_policy = {
    .mode = WAIT_ADAPTIVE, .spin_ns = ENDPOINT_DEFAULT_SPIN_NS, .yield_ns = ENDPOINT_DEFAULT_YIELD_NS};

struct waiting {
    PyObject_HEAD
    struct wait_policy policy;
};

int waiting_policy_of(const struct module_state *state, PyObject *object, struct wait_policy *policy)
{
    *policy = default_policy;
    if (object == Py_None)
        return 0;
    if (Py_TYPE(object) != state->waiting_type) {
        PyErr_SetString(PyExc_TypeError, "waiting must be a Waiting or None");
        return -1;
    }
    *policy = ((struct waiting *)object)->policy;
    return 0;
}

static PyObject *waiting_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"mode", "spin_ns", "yield_ns", NULL};
    const char *mode = mode_names[WAIT_ADAPTIVE];
    Py_ssize_t spin_ns = ENDPOINT_DEFAULT_SPIN_NS, yield_ns = ENDPOINT_DEFAULT_YIELD_NS;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "|snn:Waiting", names, &mode, &spin_ns, &yield_ns))
        return NULL;
    size_t found = 0;
    while (found < MODES && strcmp(mode, mode_names[found]) != 0)
        found++;
    if (found == MODES)
        return PyErr_Format(PyExc_ValueError, "mode: 'adaptive', 'spin' or 'block' expected, not '%s'", mode);
    if (spin_ns < 0 || spin_ns > ENDPOINT_MAX_PHASE_NS || yield_ns < 0 || yield_ns > ENDPOINT_MAX_PHASE_NS)
        return PyErr_Format(PyExc_ValueError, "spin_ns and yield_ns: 0 to %u expected", ENDPOINT_MAX_PHASE_NS);
    struct waiting *waiting = new_instance(type);
    if (waiting)
        waiting->policy = (struct wait_policy){
            .mode = (enum wait_mode)found, .spin_ns = (uint32_t)spin_ns, .yield_ns = (uint32_t)yield_ns};
    return (PyObject *)waiting;
}

static void waiting_dealloc(PyObject *waiting)
{
    free_instance(waiting);
}

static PyObject *waiting_mode(struct waiting *waiting, void *unused)
{
    return PyUnicode_FromString(mode_names[waiting->policy.mode]);
}

static PyObject *waiting_repr(struct waiting *waiting)
{
    return PyUnicode_FromFormat("Waiting('%s', spin_ns=%u, yield_ns=%u)", mode_names[waiting->policy.mode],
                                (unsigned)waiting->policy.spin_ns, (unsigned)waiting->policy.yield_ns);
}

static PyGetSetDef waiting_properties[] = {
    {"mode", (getter)waiting_mode, NULL, "'adaptive', 'spin' or 'block'.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot waiting_slots[] = {
    {Py_tp_doc, "How a side waits: spin at most spin_ns, then sched_yield at most yield_ns, then block."},
    {Py_tp_new, waiting_new},
    {Py_tp_dealloc, waiting_dealloc},
    {Py_tp_getset, waiting_properties},
    {Py_tp_repr, waiting_repr},
    {0, NULL},
};

PyType_Spec waiting_spec = {
    .name = "bus.native.Waiting",
    .basicsize = sizeof(struct waiting),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = waiting_slots,
};
