/* The extension _blockio: the disk's fast paths for Python.
 *
 * The types of the ring reach into a bus.native.Channel and use its sending and receiving side as any other call of it
 * would. Those of the messages have sockets. */
#include "blockio.h"

#include <stddef.h>

#include "block_queue.h"
#include "message_client.h"
#include "nbd_engine.h"

static const struct {
    PyType_Spec *spec;
    size_t at; /* of the type in struct module_state */
} types[] = {
    {&server_spec, offsetof(struct module_state, server_type)},
    {&queue_spec, offsetof(struct module_state, queue_type)},
    {&lock_spec, offsetof(struct module_state, lock_type)},
    {&relay_spec, offsetof(struct module_state, relay_type)},
    {&calls_spec, offsetof(struct module_state, calls_type)},
    {&forward_spec, offsetof(struct module_state, forward_type)},
    {&message_queue_spec, offsetof(struct module_state, message_queue_type)},
    {&message_server_spec, offsetof(struct module_state, message_server_type)},
    {&nbd_spec, offsetof(struct module_state, nbd_type)},
};
#define TYPES (sizeof types / sizeof *types)

static const struct {
    const char *name;
    unsigned value;
} numbers[] = {
    {"MAX_SLOTS", BLOCK_QUEUE_MAX_SLOTS},
    {"MAX_TRANSFER_BYTES", STORVSP_MAX_TRANSFER_BYTES},
    {"MAX_CALLS", MESSAGE_CALLS_MAX},
    {"NOTHING", RECEIVED_NOTHING},
    {"GONE", RECEIVED_GONE},
    {"BROKEN", RECEIVED_BROKEN},
    {"NBD_CONNECTIONS_MAX", NBD_CONNECTIONS_MAX},
    {"NBD_REQUESTS_MAX", NBD_REQUESTS_MAX},
    {"NBD_PAYLOAD_BYTES_MAX", NBD_PAYLOAD_BYTES_MAX},
    {"NBD_DROPPED_PAYLOAD_BYTES_MAX", NBD_DROPPED_PAYLOAD_BYTES_MAX},
    {"NBD_ENDED_IN_ORDER", NBD_ENDED_IN_ORDER},
    {"NBD_ENDED_LOST", NBD_ENDED_LOST},
    {"NBD_ENDED_BROKEN", NBD_ENDED_BROKEN},
};
#define NUMBERS (sizeof numbers / sizeof *numbers)

static PyTypeObject **type_at(struct module_state *state, size_t number)
{
    return (PyTypeObject **)((char *)state + types[number].at);
}

static int module_exec(PyObject *module)
{
    struct module_state *state = PyModule_GetState(module);
    PyObject *core = PyImport_ImportModule("bus.native._core");
    PyObject *capsule = core ? PyObject_GetAttrString(core, "C_API") : NULL;
    Py_XDECREF(core);
    state->core = capsule ? PyCapsule_GetPointer(capsule, CORE_API_CAPSULE) : NULL;
    Py_XDECREF(capsule); /* _core is never unloaded, and what the capsule points at is static */
    if (!state->core)
        return -1;
    if (!core_api_matches(state->core)) {
        PyErr_SetString(PyExc_ImportError, "bus.native and partitions.storage were not built together: build both again");
        return -1;
    }
    for (size_t i = 0; i < TYPES; i++) {
        PyTypeObject **const type = type_at(state, i);
        *type = (PyTypeObject *)PyType_FromModuleAndSpec(module, types[i].spec, NULL);
        if (!*type || PyModule_AddType(module, *type) < 0)
            return -1;
    }
    for (size_t i = 0; i < NUMBERS; i++)
        if (PyModule_AddIntConstant(module, numbers[i].name, (long)numbers[i].value) < 0)
            return -1;
    return 0;
}

static int module_traverse(PyObject *module, visitproc visit, void *arg)
{
    struct module_state *state = PyModule_GetState(module);
    for (size_t i = 0; i < TYPES; i++)
        Py_VISIT(*type_at(state, i));
    return 0;
}

static int module_clear(PyObject *module)
{
    struct module_state *state = PyModule_GetState(module);
    for (size_t i = 0; i < TYPES; i++)
        Py_CLEAR(*type_at(state, i));
    return 0;
}

static PyModuleDef_Slot module_slots[] = {
    {Py_mod_exec, module_exec},
    {0, NULL},
};

static struct PyModuleDef blockio_module = {
    PyModuleDef_HEAD_INIT,
    .m_name = "partitions.storage._blockio",
    .m_size = sizeof(struct module_state),
    .m_slots = module_slots,
    .m_traverse = module_traverse,
    .m_clear = module_clear,
};

PyMODINIT_FUNC PyInit__blockio(void)
{
    return PyModuleDef_Init(&blockio_module);
}
