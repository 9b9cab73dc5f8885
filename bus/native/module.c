/* bus.native._core: module state, the free functions, and what the types are called. */
#include "module.h"

#include <string.h>

#include "clock.h"
#include "core_api.h"
#include "crc32c.h"
#include "reference_time.h"
#include "ring.h"
#include "synic.h"

#define CRC_WITHOUT_GIL_BYTES 65536 /* below, releasing the lock costs more than it lets others do */

static struct module_state *module_state_of(PyObject *module)
{
    return PyModule_GetState(module);
}

/* A SINT argument. */
static int to_sint(PyObject *object, uint32_t *sint)
{
    if (to_u32(object, 0, sint) < 0)
        return -1;
    if (*sint < SYNIC_SINTS)
        return 0;
    PyErr_Format(PyExc_ValueError, "sint: 0 to %u expected", SYNIC_SINTS - 1);
    return -1;
}

static int to_synic_flag(PyObject *object, uint32_t *flag)
{
    if (to_u32(object, 0, flag) < 0)
        return -1;
    if (*flag < SYNIC_FLAGS)
        return 0;
    PyErr_Format(PyExc_ValueError, "flag: 0 to %u expected", SYNIC_FLAGS - 1);
    return -1;
}

static PyObject *synic_post(PyObject *module, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames)
{
    static const char *const names[] = {"sim_page", "sint", "message_type", "sender", "payload"};
    PyObject *values[5];
    uint32_t sint;
    struct synic_message message;
    struct readable payload;
    Py_buffer page;
    if (parse_arguments("synic_post", names, 5, 5, args, nargs, kwnames, values) < 0 || to_sint(values[1], &sint) < 0
        || to_u32(values[2], 0, &message.type) < 0 || to_u64(values[3], 0, &message.sender) < 0
        || readable_open(&payload, values[4]) < 0)
        return NULL;
    const bool fits = payload.length <= (Py_ssize_t)SYNIC_PAYLOAD_MAX_BYTES && message.type != 0;
    if (fits) {
        message.payload_bytes = (uint32_t)payload.length;
        memcpy(message.payload, payload.bytes, message.payload_bytes);
    }
    readable_close(&payload);
    if (!fits)
        return PyErr_Format(PyExc_ValueError, "a message has a type other than 0 and a payload of at most %u bytes",
                            SYNIC_PAYLOAD_MAX_BYTES);
    if (writable_page_open(&page, values[0], SYNIC_PAGE_BYTES, "sim_page") < 0)
        return NULL;
    const bool posted = synic_post_message(page.buf, sint, &message);
    PyBuffer_Release(&page);
    return PyBool_FromLong(posted);
}

static PyObject *synic_take(PyObject *module, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames)
{
    static const char *const names[] = {"sim_page", "sint"};
    PyObject *values[2];
    uint32_t sint;
    struct synic_message message;
    bool eom_owed = false;
    Py_buffer page;
    if (parse_arguments("synic_take", names, 2, 2, args, nargs, kwnames, values) < 0 || to_sint(values[1], &sint) < 0
        || writable_page_open(&page, values[0], SYNIC_PAGE_BYTES, "sim_page") < 0)
        return NULL;
    const bool taken = synic_take_message(page.buf, sint, &message, &eom_owed);
    PyBuffer_Release(&page);
    if (!taken)
        Py_RETURN_NONE;
    return Py_BuildValue("(IKy#O)", (unsigned)message.type, (unsigned long long)message.sender, (char *)message.payload,
                         (Py_ssize_t)message.payload_bytes, eom_owed ? Py_True : Py_False);
}

/* flag_set and flag_take: (sief_page, flag) -> bool. */
static PyObject *flag_change(const char *function, bool (*change)(void *, uint32_t), PyObject *const *args,
                             Py_ssize_t nargs, PyObject *kwnames)
{
    static const char *const names[] = {"sief_page", "flag"};
    PyObject *values[2];
    uint32_t flag;
    Py_buffer page;
    if (parse_arguments(function, names, 2, 2, args, nargs, kwnames, values) < 0 || to_synic_flag(values[1], &flag) < 0
        || writable_page_open(&page, values[0], SYNIC_PAGE_BYTES, "sief_page") < 0)
        return NULL;
    const bool changed = change(page.buf, flag);
    PyBuffer_Release(&page);
    return PyBool_FromLong(changed);
}

static PyObject *flag_set(PyObject *module, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames)
{
    return flag_change("flag_set", synic_flag_set, args, nargs, kwnames);
}

static PyObject *flag_take(PyObject *module, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames)
{
    return flag_change("flag_take", synic_flag_take, args, nargs, kwnames);
}

static PyObject *flags_take_all(PyObject *module, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames)
{
    static const char *const names[] = {"sief_page", "sint"};
    PyObject *values[2];
    uint32_t sint;
    uint16_t numbers[SYNIC_FLAGS_PER_SINT];
    Py_buffer page;
    if (parse_arguments("flags_take_all", names, 2, 2, args, nargs, kwnames, values) < 0 || to_sint(values[1], &sint) < 0)
        return NULL;
    PyObject *list = PyList_New(0); /* before the flags are cleared: later, there must be nothing left to fail but memory */
    if (!list || writable_page_open(&page, values[0], SYNIC_PAGE_BYTES, "sief_page") < 0) {
        Py_XDECREF(list);
        return NULL;
    }
    const uint32_t count = synic_flags_take_all(page.buf, sint, numbers);
    PyBuffer_Release(&page);
    for (uint32_t i = 0; list && i < count; i++) {
        PyObject *number = PyLong_FromLong(numbers[i]);
        if (!number || PyList_Append(list, number) < 0)
            Py_CLEAR(list);
        Py_XDECREF(number);
    }
    return list;
}

static PyObject *eventfd_signal(PyObject *module, PyObject *fd)
{
    const long number = PyLong_AsLong(fd);
    if (number == -1 && PyErr_Occurred())
        return NULL;
    if (number < 0 || number > INT32_MAX)
        return PyErr_Format(PyExc_ValueError, "not a file descriptor: %ld", number);
    struct module_state *state = module_state_of(module);
    if (!state->ringer_opened) {
        /* Not at import: the exit of a process that holds an AIO context waits for a grace period of the kernel's, some
         * 30 ms, and the machine waits for a root's exit. Only the broker rings this way. */
        state->ringer_opened = true;
        doorbell_ringer_open(&state->ringer);
    }
    return PyBool_FromLong(doorbell_ring(&state->ringer, (int)number));
}

static PyObject *crc32c_function(PyObject *module, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames)
{
    static const char *const names[] = {"data", "value"};
    PyObject *values[2];
    uint32_t value;
    struct readable data;
    if (parse_arguments("crc32c", names, 2, 1, args, nargs, kwnames, values) < 0 || to_u32(values[1], 0, &value) < 0
        || readable_open(&data, values[0]) < 0)
        return NULL;
    if (data.length > CRC_WITHOUT_GIL_BYTES) {
        PyThreadState *thread = PyEval_SaveThread();
        value = crc32c(value, data.bytes, (size_t)data.length);
        PyEval_RestoreThread(thread);
    } else {
        value = crc32c(value, data.bytes, (size_t)data.length);
    }
    readable_close(&data);
    return PyLong_FromUnsignedLong(value);
}

static PyObject *monotonic_ns(PyObject *module, PyObject *unused)
{
    return PyLong_FromUnsignedLongLong(clock_now_ns());
}

static PyObject *reference_time(PyObject *module, PyObject *object)
{
    struct readable page;
    if (readable_open_briefly(&page, object) < 0)
        return NULL;
    PyObject *result = NULL;
    uint64_t time;
    if (page.length < (Py_ssize_t)sizeof(struct reference_page) || (uintptr_t)page.bytes % 8 != 0) {
        PyErr_SetString(PyExc_ValueError, "page: too short, or not 8-aligned");
    } else if (!reference_time_read(page.bytes, &time)) {
        Py_INCREF(Py_None);
        result = Py_None;
    } else {
        result = PyLong_FromUnsignedLongLong(time);
    }
    readable_close(&page);
    return result;
}

static PyObject *reference_page_write(PyObject *module, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames)
{
    static const char *const names[] = {"page", "scale", "offset"};
    PyObject *values[3];
    uint64_t scale;
    int64_t offset;
    Py_buffer page;
    if (parse_arguments("reference_page_write", names, 3, 3, args, nargs, kwnames, values) < 0
        || to_u64(values[1], 0, &scale) < 0 || to_i64(values[2], 0, &offset) < 0
        || writable_page_open(&page, values[0], SYNIC_PAGE_BYTES, "page") < 0)
        return NULL;
    reference_time_write(page.buf, scale, offset);
    PyBuffer_Release(&page);
    Py_RETURN_NONE;
}

static PyObject *tsc_is_invariant(PyObject *module, PyObject *unused)
{
    return PyBool_FromLong(reference_tsc_is_invariant());
}

static PyObject *tsc_sample(PyObject *module, PyObject *unused)
{
    uint64_t tsc, now_ns;
    reference_tsc_sample(&tsc, &now_ns);
    return Py_BuildValue("(KK)", (unsigned long long)tsc, (unsigned long long)now_ns);
}

#define FAST (METH_FASTCALL | METH_KEYWORDS)
#define FUNCTION(name, function, how, doc) {name, (PyCFunction)(void (*)(void))(function), how, doc}

static PyMethodDef functions[] = {
    FUNCTION("synic_post", synic_post, FAST, "Write one message into an empty slot; False: occupied, pending flag set."),
    FUNCTION("synic_take", synic_take, FAST, "Copy a message out and empty the slot; None: empty."),
    FUNCTION("flag_set", flag_set, FAST, "Set an event flag; True: it was clear."),
    FUNCTION("flag_take", flag_take, FAST, "Clear an event flag; True: it was set."),
    FUNCTION("flags_take_all", flags_take_all, FAST, "Clear all flags of a SINT; which were set."),
    FUNCTION("eventfd_signal", eventfd_signal, METH_O, "Add 1 to an eventfd, never blocking; False: it is full."),
    FUNCTION("reference_time", reference_time, METH_O, "Time by a reference TSC page, in 100 ns; None: not valid."),
    FUNCTION("reference_page_write", reference_page_write, FAST, "Write a reference TSC page; scale 0: not valid."),
    FUNCTION("tsc_is_invariant", tsc_is_invariant, METH_NOARGS, "Whether the TSC counts at one rate."),
    FUNCTION("tsc_sample", tsc_sample, METH_NOARGS, "(TSC, CLOCK_MONOTONIC in ns) of one moment."),
    FUNCTION("crc32c", crc32c_function, FAST, "CRC-32C of data, going on from value."),
    FUNCTION("monotonic_ns", monotonic_ns, METH_NOARGS, "CLOCK_MONOTONIC in nanoseconds."),
    {NULL, NULL, 0, NULL},
};

static PyObject *new_error(PyObject *module, const char *name, PyObject *base, const char *doc)
{
    char qualified[64] = "bus.native.";
    strcat(qualified, name); /* the names below are short */
    PyObject *error = PyErr_NewExceptionWithDoc(qualified, doc, base, NULL);
    if (error && PyModule_AddObjectRef(module, name, error) < 0)
        Py_CLEAR(error);
    return error;
}

static PyTypeObject *new_type(PyObject *module, PyType_Spec *spec)
{
    PyObject *type = PyType_FromModuleAndSpec(module, spec, NULL);
    if (type && PyModule_AddType(module, (PyTypeObject *)type) < 0)
        Py_CLEAR(type);
    return (PyTypeObject *)type;
}

static int execute(PyObject *module)
{
    struct module_state *state = module_state_of(module);
    crc32c_prepare();
    state->ring_error = new_error(module, "RingError", NULL, "Base of what a ring can refuse.");
    if (!state->ring_error)
        return -1;
    state->ring_full = new_error(module, "RingFull", state->ring_error, "Not enough free bytes now; nothing was written.");
    state->ring_corrupt = new_error(module, "RingCorrupt", state->ring_error,
                                    "The peer broke the ring's rules; the channel is finished. Nothing was released.");
    state->ring_closed = new_error(module, "RingClosed", state->ring_error, "close() was called here; no data was lost.");
    state->waiting_type = new_type(module, &waiting_spec);
    state->histogram_type = new_type(module, &histogram_spec);
    state->trace_type = new_type(module, &trace_spec);
    state->service_budget_type = new_type(module, &service_budget_spec);
    PyType_Spec *const others[] = {&channel_spec, &fast_intercepts_spec, &gpa_map_spec, &router_spec, &timer_spec};
    for (size_t i = 0; i < sizeof others / sizeof *others; i++) {
        PyTypeObject *type = new_type(module, others[i]);
        if (!type)
            return -1;
        Py_DECREF((PyObject *)type); /* the module holds it */
    }
    if (!state->ring_full || !state->ring_corrupt || !state->ring_closed || !state->waiting_type || !state->histogram_type
        || !state->trace_type || !state->service_budget_type)
        return -1;
    if (core_api_add(module) < 0)
        return -1;
    return PyModule_AddIntConstant(module, "PAGE_BYTES", RING_PAGE_BYTES);
}

static int traverse(PyObject *module, visitproc visit, void *arg)
{
    struct module_state *state = module_state_of(module);
    Py_VISIT(state->ring_error);
    Py_VISIT(state->ring_full);
    Py_VISIT(state->ring_corrupt);
    Py_VISIT(state->ring_closed);
    Py_VISIT(state->waiting_type);
    Py_VISIT(state->histogram_type);
    Py_VISIT(state->trace_type);
    Py_VISIT(state->service_budget_type);
    return 0;
}

static int clear(PyObject *module)
{
    struct module_state *state = module_state_of(module);
    Py_CLEAR(state->ring_error);
    Py_CLEAR(state->ring_full);
    Py_CLEAR(state->ring_corrupt);
    Py_CLEAR(state->ring_closed);
    Py_CLEAR(state->waiting_type);
    Py_CLEAR(state->histogram_type);
    Py_CLEAR(state->trace_type);
    Py_CLEAR(state->service_budget_type);
    return 0;
}

static void free_module(void *module)
{
    struct module_state *state = module_state_of(module);
    clear(module);
    if (state->waiting_type == NULL && state->ringer_opened)
        doorbell_ringer_close(&state->ringer);
}

static PyModuleDef_Slot slots[] = {
    {Py_mod_exec, execute},
    {0, NULL},
};

static PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "bus.native._core",
    .m_doc = "The native core: rings, waiting, SynIC pages, the interrupt router.",
    .m_size = sizeof(struct module_state),
    .m_methods = functions,
    .m_slots = slots,
    .m_traverse = traverse,
    .m_clear = clear,
    .m_free = free_module,
};

PyMODINIT_FUNC PyInit__core(void)
{
    return PyModuleDef_Init(&definition);
}
