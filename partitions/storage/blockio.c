/* The extension _blockio: the disk's fast paths for Python.
 *
 * Both types reach into a bus.native.Channel and use its sending and receiving side as any other call of it would. */
#include "blockio.h"

#include "block_queue.h"

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
    state->server_type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &server_spec, NULL);
    state->queue_type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &queue_spec, NULL);
    state->lock_type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &lock_spec, NULL);
    state->relay_type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &relay_spec, NULL);
    if (!state->server_type || !state->queue_type || !state->lock_type || PyModule_AddType(module, state->lock_type) < 0)
        return -1;
    if (!state->relay_type || PyModule_AddType(module, state->relay_type) < 0)
        return -1;
    if (PyModule_AddType(module, state->server_type) < 0 || PyModule_AddType(module, state->queue_type) < 0)
        return -1;
    return PyModule_AddIntConstant(module, "MAX_SLOTS", BLOCK_QUEUE_MAX_SLOTS) < 0
                   || PyModule_AddIntConstant(module, "MAX_TRANSFER_BYTES", STORVSP_MAX_TRANSFER_BYTES) < 0
               ? -1
               : 0;
}

static int module_traverse(PyObject *module, visitproc visit, void *arg)
{
    struct module_state *state = PyModule_GetState(module);
    Py_VISIT(state->server_type);
    Py_VISIT(state->queue_type);
    Py_VISIT(state->lock_type);
    Py_VISIT(state->relay_type);
    return 0;
}

static int module_clear(PyObject *module)
{
    struct module_state *state = PyModule_GetState(module);
    Py_CLEAR(state->server_type);
    Py_CLEAR(state->queue_type);
    Py_CLEAR(state->lock_type);
    Py_CLEAR(state->relay_type);
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
