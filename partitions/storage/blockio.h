/* What the files of the extension _blockio share. */
#ifndef PARTVISOR_BLOCKIO_H
#define PARTVISOR_BLOCKIO_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "clock.h"
#include "core_api.h"

struct module_state {
    const struct core_api *core;
    PyTypeObject *server_type, *queue_type, *lock_type, *relay_type;
    PyTypeObject *calls_type, *forward_type, *message_queue_type, *message_server_type, *nbd_type;
};

extern PyType_Spec server_spec, queue_spec, lock_spec, relay_spec;
extern PyType_Spec calls_spec, forward_spec, message_queue_spec, message_server_spec, nbd_spec;

struct device_lock *device_lock_of(PyObject *object); /* a DeviceLock */
struct block_relay *block_relay_of(PyObject *object);  /* a Relay */
struct block_forward *block_forward_of(PyObject *object); /* a Forward */

/* The state of the module that an object's type belongs to. The types are final, so this is always the right one. */
static inline struct module_state *state_of(PyTypeObject *type)
{
    return PyType_GetModuleState(type);
}

static inline uint64_t deadline_of(long long timeout_ns)
{
    return timeout_ns < 0 ? ENDPOINT_FOREVER : clock_now_ns() + (uint64_t)timeout_ns;
}

#endif
